"""`python scripts/study.py --plan scripts/study/plan.yaml --train_dir seedlings`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.study import main

if __name__ == "__main__":
    sys.exit(run(main))
