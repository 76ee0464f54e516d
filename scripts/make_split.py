"""`python scripts/make_split.py --help`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.make_split import main

if __name__ == "__main__":
    sys.exit(run(main))
