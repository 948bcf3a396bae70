"""Examine kernels in a process of their own, because a wrong kernel may kill it, hang it, or poison its context.

The process reads a job, one line of JSON, from stdin. It writes lines of JSON to stdout: the verdict's key, each check
as it begins, and the result of each kind of call. It ends when stdin closes, and so with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from liif_fast.backends import verdict
from liif_fast.devices import out_of_memory
from liif_fast.qualification.checks import Wrong, examine, large
from liif_fast.qualification.problems import NETWORKS, Problem, Unit, extent
from liif_fast.qualification.speed import race

# Errors that say nothing about a kernel, because the device is taken, lost, or not ready.
NO_DEVICE = (
    "busy or unavailable",
    "no cuda-capable device",
    "no cuda gpus",
    "driver version is insufficient",
    "system not yet initialized",
    "ecc error",
)


def main() -> None:
    """Run the job that stdin gives."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that the output of libraries does not mix with messages

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    try:
        device = torch.device(job["device"])
        if device.type == "cuda":
            torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
        if any(Unit(*unit).backend == verdict.AMX for unit in job["units"]):
            if refused := torch.ops.liif_fast.cpu_use_amx(True):
                raise RuntimeError(refused)
        send(key=verdict.key(device.type, device.index))
        for unit in job["units"]:
            if not _examine(Unit(*unit), device, job["seed"], job["last"], send):
                break
    except Exception as error:
        send(unavailable=_line(error))
    os._exit(0)  # because a driver that crashes at exit is not the kernel's fault


def _examine(unit: Unit, device: torch.device, seed: int, last: bool, send: Callable[..., None]) -> bool:
    """Examine a kind of call and send the result; return whether the process can continue."""

    def tell(check: str) -> None:
        send(at=check, unit=unit)

    try:
        refusals = {network: Problem(network, unit, device, seed).refusal() for network in NETWORKS[extent(device)]}
        networks = [network for network, refusal in refusals.items() if not refusal]
        if not networks:
            send(unit=unit, refused=next(iter(refusals.values())))
            return True
        examine(unit, device, networks, seed, tell)
        speed = {}
        if last:
            large(unit, device, networks[0], seed, tell)
            speed = race(unit, device, networks[0], seed, tell)
        send(unit=unit, correct=True, **speed)
    except Wrong as error:
        send(unit=unit, correct=False, why=str(error))
    except Exception as error:
        if out_of_memory(error) or any(words in str(error).lower() for words in NO_DEVICE):
            send(unavailable=_line(error))
        else:
            send(unit=unit, correct=False, why=_line(error))
        return False  # because a CUDA error persists in its process
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _end_with_stdin() -> None:
    sys.stdin.read()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # also ends the compilers that it started
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
