"""The command `liif-fast`: one module a subcommand, each with `add(subparsers)` and `run(args)`.

Heavy imports (torch, the models) happen inside `run`, so that `--help` and a usage error answer at once.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None takes `sys.argv`.

    Returns:
        The exit code.
    """
    try:
        from liif_fast.cli.program import run  # here, since Ctrl-C may come while Pillow is being imported

        return run(argv)
    except KeyboardInterrupt:
        print("liif-fast: interrupted", file=sys.stderr)
        return 130
