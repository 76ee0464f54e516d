"""`python scripts/convert_checkpoint.py --checkpoint_path FILE.pth --output_dir DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.convert_checkpoint import main

if __name__ == "__main__":
    sys.exit(run(main))
