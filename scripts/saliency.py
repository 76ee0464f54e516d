"""`python scripts/saliency.py --model_name_or_path DIR --images DIR --output_dir DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.saliency import main

if __name__ == "__main__":
    sys.exit(run(main))
