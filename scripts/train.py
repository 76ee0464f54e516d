"""`accelerate launch scripts/train.py --config scripts/recipes/quickstart.yaml`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.train import main

if __name__ == "__main__":
    sys.exit(run(main))
