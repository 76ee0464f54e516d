"""`python scripts/benchmark.py --output_dir DIR [--variant 31B] [--parts layers,training]`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(run(main))
