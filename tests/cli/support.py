"""What the tests of the command line share."""

from collections.abc import Callable
from pathlib import Path

import liif_fast

ROOT = Path(liif_fast.__file__).parents[1]


def assert_one_line(err: str, message: str) -> None:
    assert err.startswith("liif-fast: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def raising(error: BaseException | type[BaseException]) -> Callable[..., None]:
    """What raises when it is called, whatever with."""

    def call(*args: object, **options: object) -> None:
        raise error

    return call
