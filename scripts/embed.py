"""`python scripts/embed.py --model_name_or_path DIR --embeddings_file FILE.parquet --images DIR`"""

import sys

from seedling_hf.commands import run
from seedling_hf.commands.embed import main

if __name__ == "__main__":
    sys.exit(run(main))
