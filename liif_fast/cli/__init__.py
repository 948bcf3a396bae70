"""The command `liif-fast`: one module per subcommand, with `add(subparsers)` and `run(args)`, which returns a code.

`run` imports heavy modules (torch, the models) itself, so that `--help` and usage errors are quick.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from liif_fast.signals import insist, unwinding

if TYPE_CHECKING:
    from argparse import ArgumentParser, _ArgumentGroup

# As in a shell, 128 plus the number of the signal that ends the run, or would (SIGPIPE).
BROKEN_PIPE = 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 129 terminal closed, 130 interrupted, "
    "141 the output's reader has gone (such as head), 143 terminated."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without `argv` the process ends with this command."""
    with unwinding(last=argv is None):
        try:
            from liif_fast.cli.program import run  # here, because Ctrl-C may come during the import of Pillow

            return run(argv)
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        finally:
            if argv is None:
                _give_up()


def say(text: str) -> None:
    """Print a line to stderr; ignore a closed pipe or terminal, because the work itself has not failed."""
    if sys.stderr is not None:  # None if closed by `2>&-`; print would then use stdout
        with suppress(OSError, ValueError):
            print(f"liif-fast: {text}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, with the file that the system names."""
    from liif_fast.files import reason

    named = isinstance(error, OSError) and error.strerror and error.filename
    return (f"{named}: " if named else "") + reason(error)


def complain(source: object, error: Exception) -> None:
    """Report in one line why a file of several failed, unless it was a signal."""
    insist()
    text = one_line(error)
    say(f"error: {text if str(source) in text else f'{source}: {text}'}")


def add_plugin(parser: "ArgumentParser") -> None:
    """Add the option that imports a user's modules."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=lambda text: text.removesuffix(".py"),
        metavar="MODULE",
        help="import this module first, which registers a model or an encoder of your own; may be repeated",
    )


def add_device(parser: "ArgumentParser | _ArgumentGroup") -> None:
    """Add the option for the device."""
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:N or mps"
    )


def add_compute(parser: "ArgumentParser | _ArgumentGroup") -> None:
    """Add the options that affect only speed and rounding: device, backend and precision."""
    add_device(parser)
    parser.add_argument("--backend", metavar="NAME", help="the decoder's backend (default: the fastest; see info)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16", "fp16"),
        default="float32",
        help="precision of encoder and decoder; float32 if the result is not finite (default: float32)",
    )


def positive(text: str) -> int:
    """Parse an option's positive whole number."""
    from argparse import ArgumentTypeError  # here, because Ctrl-C may come during its import

    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) == 0:
        raise ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def given_path(text: str) -> str:
    """Parse the name of a file or folder, with ~ for the home; an empty one would be the current folder."""
    from argparse import ArgumentTypeError

    if not text:
        raise ArgumentTypeError("is empty; give a name")
    return os.path.expanduser(text)


def _give_up() -> None:
    """Discard output that cannot be written, because Python would fail to flush it at exit and return 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by `>&-`
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
