"""`python scripts/evaluate.py --model_name_or_path DIR --test_dir DIR --output_dir DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(run(main))
