"""`python -m liif_fast` is the command `liif-fast`."""

import sys

from liif_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
