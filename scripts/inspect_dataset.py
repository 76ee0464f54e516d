"""`python scripts/inspect_dataset.py --help`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.inspect_dataset import main

if __name__ == "__main__":
    sys.exit(run(main))
