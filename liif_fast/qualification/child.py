"""The process that examines kernels, since one that is wrong may end it, hang it, or poison its context.

Reads a job, one line of JSON, from stdin and writes lines of JSON to stdout: the key of the device, each check as it
begins, and how each kind of call stands. It ends when stdin does, which it does with the process that started it.
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
from liif_fast.qualification.problems import NETWORKS, Problem, Unit
from liif_fast.qualification.speed import race

# What says nothing about a kernel: the device is taken, lost, or not ready.
NO_DEVICE = (
    "busy or unavailable",
    "no cuda-capable device",
    "no cuda gpus",
    "driver version is insufficient",
    "system not yet initialized",
    "ecc error",
)


def main() -> None:
    """Do the job that stdin gives."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no message

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    try:
        device = torch.device(job["device"])
        if device.type == "cuda":
            torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
        send(key=verdict.key(device.type, device.index))
        for unit in job["units"]:
            if not _examine(Unit(*unit), device, job["seed"], job["last"], send):
                break
    except Exception as error:
        send(unavailable=_line(error))
    os._exit(0)  # what a driver does on the way out is no kernel's fault


def _examine(unit: Unit, device: torch.device, seed: int, last: bool, send: Callable[..., None]) -> bool:
    """Examine a kind of call and send how it stands; return whether the process can go on."""

    def tell(check: str) -> None:
        send(at=check, unit=unit)

    try:
        refusals = {network: Problem(network, unit, device, seed).refusal() for network in NETWORKS[device.type]}
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
        return False  # an error of the device stays with the process
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _end_with_stdin() -> None:
    sys.stdin.read()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # with the compilers it has started
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
