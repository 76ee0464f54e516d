"""`python scripts/demo.py --model_name_or_path DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.demo import main

if __name__ == "__main__":
    sys.exit(run(main))
