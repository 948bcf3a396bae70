"""Count the files that a reader of a call opens from `LIIFDecoder.forward` to the first decode kernel.

    python -m benchmarks.walk

A Python file of liif_fast/ or kernels/ counts if a function in it is called on the way. On the CPU the walk ends when
the C++ operator returns. With Triton it ends at the launch of the kernel, in Triton's interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
ROOMS = (ROOT / "liif_fast", ROOT / "kernels")


class _Launched(Exception):
    """Signal that the decode kernel is about to start."""


@cache
def _counted(name: str) -> str | None:
    """Return a file's path below ROOT if it is in ROOMS."""
    path = Path(name)
    return str(path.relative_to(ROOT)) if any(room in path.parents for room in ROOMS) else None


def files_of(call: Callable[[], object]) -> list[str]:
    """Return the files of ROOMS in the order in which `call` first enters them."""
    seen: dict[str, None] = {}

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (file := _counted(frame.f_code.co_filename)):
            seen.setdefault(file)

    sys.setprofile(look)
    try:
        call()
    except _Launched:
        pass
    finally:
        sys.setprofile(None)
    return list(seen)


def walk(backend: str) -> list[str]:
    """Return the files of a training call of LIIFDecoder on `backend`, "cpu" or "triton"."""
    import torch

    from liif_fast import LIIFDecoder

    decoder = LIIFDecoder(4, hidden_list=(16, 16), backend=backend)
    feat, coord, cell = torch.randn(1, 4, 5, 6), torch.rand(1, 8, 2), torch.rand(1, 8, 2)

    def call() -> None:
        decoder(feat.requires_grad_(), coord, cell)

    call()  # so that imports and first uses of caches do not count
    if backend == "cpu":
        return files_of(call)
    from liif_fast.kernels import decode

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            def launch(*_: object, **__: object) -> None:
                raise _Launched

            return launch

    kernel, decode.decode_kernel = decode.decode_kernel, Kernel()
    try:
        return files_of(call)
    finally:
        decode.decode_kernel = kernel


def main() -> None:
    """Print both walks."""
    os.environ["TRITON_INTERPRET"] = "1"
    for backend in ("cpu", "triton"):
        files = walk(backend)
        print(f"{backend}: {len(files)} files\n  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
