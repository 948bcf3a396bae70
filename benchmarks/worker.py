"""Decode in a process with another instruction set: python -m benchmarks.worker OUTPUT SIDE SCALE THREADS HIDDEN...

The kernels choose their instruction set once per process, from LIIF_FAST_CPU_ISA. `Worker` starts a process that makes
the same problem as its parent. It decodes once for each line that it reads, and answers with a line. Its output is a
file that both have mapped, so a request costs little.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import eager, records
from benchmarks.common import make_problem
from liif_fast.functional import liif_decode


class Worker:
    """Call `liif_decode` for every pixel of an image, in a process with the instruction set `isa`."""

    def __init__(self, isa: str, side: int, scale: int, hidden: Sequence[int]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="liif_fast-bench-")
        path = Path(self.folder.name) / "output"
        self.output = _mapped(path, side, scale)
        command = [str(each) for each in (path, side, scale, torch.get_num_threads(), *hidden)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *command],
            cwd=records.ROOT,
            env={**os.environ, "LIIF_FAST_CPU_ISA": isa},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self._ask()
        if found != isa:
            self.close()
            raise RuntimeError(f"this machine has no {isa}: the kernels took {found or 'none'}")

    def __call__(self) -> Tensor:
        """Decode; the tensor returned is overwritten by the next call."""
        self._ask()
        return self.output

    def _ask(self) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.folder.cleanup()


def _mapped(path: Path, side: int, scale: int) -> Tensor:
    count = (side * scale) ** 2
    return torch.from_file(str(path), shared=True, size=count * 3, dtype=torch.float32).view(1, count, 3)


@torch.no_grad()
def main() -> None:
    side, scale, threads, *hidden = (int(each) for each in sys.argv[2:])
    torch.set_num_threads(threads)
    output = _mapped(Path(sys.argv[1]), side, scale)
    feat, weights, biases = make_problem((side, side), hidden=hidden)
    coord, cell = eager.grid((side * scale, side * scale), feat)
    for _ in sys.stdin:
        output.copy_(liif_decode(feat, coord, cell, weights, biases, backend="cpu"))
        print(records.isa(), flush=True)


if __name__ == "__main__":
    main()
