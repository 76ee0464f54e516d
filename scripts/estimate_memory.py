"""`python scripts/estimate_memory.py --config scripts/recipes/replknet_31b.yaml --train_dir seedlings --variant 31B`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.estimate_memory import main

if __name__ == "__main__":
    sys.exit(run(main))
