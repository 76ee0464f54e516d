"""`python scripts/push_to_hub.py --output_dir outputs/quickstart --hub_model_id user/name`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.push_to_hub import main

if __name__ == "__main__":
    sys.exit(run(main))
