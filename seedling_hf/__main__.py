"""`python -m seedling_hf COMMAND …` is `seedling-hf COMMAND …`."""

import sys

from seedling_hf.commands import main

if __name__ == "__main__":
    sys.exit(main())
