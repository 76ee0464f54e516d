"""`python scripts/push_dataset.py --train_dir FOLDER --dataset_name user/name --license cc-by-sa-4.0`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.push_dataset import main

if __name__ == "__main__":
    sys.exit(run(main))
