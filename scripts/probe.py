"""`python scripts/probe.py --model_name_or_path DIR --test_dir DIR --output_dir DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.probe import main

if __name__ == "__main__":
    sys.exit(run(main))
