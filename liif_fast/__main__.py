"""Run the command `liif-fast` by `python -m liif_fast`."""

import sys

from liif_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
