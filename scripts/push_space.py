"""`python scripts/push_space.py --model_name_or_path DIR --hub_space_id user/name`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.push_space import main

if __name__ == "__main__":
    sys.exit(run(main))
