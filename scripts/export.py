"""`python scripts/export.py --model_name_or_path DIR --output_file FILE.onnx --images DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.export import main

if __name__ == "__main__":
    sys.exit(run(main))
