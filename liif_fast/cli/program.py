"""Parse the command line of `liif-fast`, run the command, and report every error in one line."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NoReturn

from liif_fast import __version__
from liif_fast.cli import BROKEN_PIPE, EXIT_CODES, one_line, say
from liif_fast.signals import insist

COMMANDS = (
    "upscale",
    "view",
    "serve",
    "lidar",
    "verify",
    "models",
    "export",
    "train",
    "plot",
    "eval",
    "qualify",
    "info",
    "bench",
)


class _Parser(argparse.ArgumentParser):
    """Report usage errors in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"liif-fast: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it sets `args.run` to the subcommand's function."""
    parser = _Parser(
        prog="liif-fast",
        description="Arbitrary-scale super-resolution with LIIF, decoded by fused kernels.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"liif-fast {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="on an error, show Python's traceback too (for bug reports)"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        import_module(f"liif_fast.cli.{command}").add(subparsers)
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Run one command; arguments and exit code as for `main`, but KeyboardInterrupt propagates."""
    args: argparse.Namespace | None = None

    def parse() -> int:
        nonlocal args
        try:
            parser = build_parser()
            known, surplus = parser.parse_known_args(argv)
            if any(len(each) > 1 and each.startswith("-") for each in surplus) or (surplus and "more" not in known):
                parser.error(f"unrecognized arguments: {' '.join(surplus)}")
            known.more = surplus  # argparse does not collect the files after an option among them
            args = known
        except SystemExit as stop:  # after help, the version or a usage error
            return stop.code if isinstance(stop.code, int) else 0
        return 0

    code = _guarded(parse, traceback=False)
    if args is None:
        return code
    notices = logging.StreamHandler()
    notices.setLevel(logging.WARNING)
    notices.setFormatter(logging.Formatter("liif-fast: %(message)s"))
    logging.getLogger("liif_fast").addHandler(notices)
    try:
        return _guarded(partial(args.run, args), args.traceback)
    finally:
        logging.getLogger("liif_fast").removeHandler(notices)


def _guarded(work: Callable[[], int], traceback: bool) -> int:
    """Run `work`, flush its output and return its exit code; report an error in one line."""
    try:
        code = int(work())
        if sys.stdout is not None:  # None if closed by `>&-`
            sys.stdout.flush()  # here, so that a full disk is reported
        return code
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        insist()
        expected = (OSError, ValueError, ImportError, MemoryError, RuntimeError)  # the last e.g. out of memory
        if traceback or not isinstance(error, expected):
            raise
        say(f"error: {one_line(error)}")
        return 1
