"""``python -m refmotion_nb``, the same as ``refmotion``."""

import sys

from refmotion_nb.cli import main

if __name__ == "__main__":
    sys.exit(main())
