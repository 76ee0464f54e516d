"""`python scripts/predict.py --model_name_or_path DIR --images PATH [PATH …] --output_file FILE.csv`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.predict import main

if __name__ == "__main__":
    sys.exit(run(main))
