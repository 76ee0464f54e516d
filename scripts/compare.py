"""`python scripts/compare.py --models DIR DIR --data_dir DIR --output_dir DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.compare import main

if __name__ == "__main__":
    sys.exit(run(main))
