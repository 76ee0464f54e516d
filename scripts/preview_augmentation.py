"""`python scripts/preview_augmentation.py --help`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.preview_augmentation import main

if __name__ == "__main__":
    sys.exit(run(main))
