"""The command `liif-fast`: one module a subcommand, each with `add(subparsers)` and `run(args)` to an exit code.

Heavy imports (torch, the models) happen inside `run`, so that `--help` and a usage error answer at once.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, _ArgumentGroup

# A signal that ends the run, or that would (a pipe's reader has left), gives 128 plus its number, as in a shell.
BROKEN_PIPE = 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 129 terminal closed, 130 interrupted, "
    "141 nobody reads the output (as head does when it has enough), 143 terminated."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without `argv` the process ends with this command."""
    try:
        from liif_fast.cli.program import run  # here, since Ctrl-C may come while Pillow is being imported

        return run(argv)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if argv is None:
            _give_up()


def say(text: str) -> None:
    """One line on stderr, if anybody is there to read it: a closed pipe or terminal is no failure of the work."""
    if sys.stderr is not None:  # closed by `2>&-`; print would take stdout
        with suppress(OSError, ValueError):
            print(f"liif-fast: {text}", file=sys.stderr, flush=True)


def add_plugin(parser: "ArgumentParser") -> None:
    """Add the option that makes models of the user's own known."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=lambda text: text.removesuffix(".py"),
        metavar="MODULE",
        help="import this module of yours first, which registers a model or an encoder; may be repeated",
    )


def add_device(parser: "ArgumentParser | _ArgumentGroup") -> None:
    """Add the option that says where to compute."""
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:N or mps"
    )


def _give_up() -> None:
    """Leave nothing unwritten that cannot be written: Python would try on its way out, complain, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by `>&-`
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
