"""Provide helpers for the command line's tests."""

import re
from collections.abc import Callable
from pathlib import Path

import liif_fast

ROOT = Path(liif_fast.__file__).parents[1]


def assert_one_line(err: str, message: str) -> None:
    assert err.startswith("liif-fast: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def without_result(err: str) -> str:
    """Return the messages except the last line of a single file: output, size, seconds."""
    return re.sub(r"(?m)^liif-fast: .*: \d+x\d+, \d+\.\d s\n", "", err)


def without_notices(err: str) -> str:
    """Return the messages except that line and the notice about a palette."""
    return re.sub(r"(?m)^liif-fast: .*: has a palette; .*\n", "", without_result(err))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def raising(error: BaseException | type[BaseException]) -> Callable[..., None]:
    """Return a function that raises an error for any arguments."""

    def call(*args: object, **options: object) -> None:
        raise error

    return call
