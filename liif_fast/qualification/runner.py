"""Start the processes that examine kernels, kill those that hang, and combine their results into a verdict."""

from __future__ import annotations

import datetime
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from typing import Any

import torch

from liif_fast.backends import QUALIFIED, cpu, verdict
from liif_fast.backends.verdict import Verdict
from liif_fast.devices import pick_device
from liif_fast.qualification.problems import OPS, PRECISIONS, Unit, interprets

ROUNDS = 3  # processes that must find a kernel correct, because some faults show in one process only
PATIENCE = 120.0  # seconds for one check, including the compilation of its kernels
ENDING = 10.0  # seconds in which a process that has closed its output must end

Tell = Callable[[str], None]


class Unavailable(RuntimeError):
    """Report that the device cannot be used now, which says nothing about the kernels."""


def qualify(device: str | torch.device = "cuda", *, seconds: float = 300, tell: Tell | None = None) -> Verdict:
    """Examine the fused kernels on this machine and store the verdict, so that `auto` takes those that are faster.

    Three fresh processes examine each kind of call (operator, precision, inference or training). A process that hangs
    is killed. If `auto` has already looked for a verdict in this process, the new one counts only in later processes.

    Args:
        device: a CUDA device, or "cpu" for the processor's AMX kernels or, with TRITON_INTERPRET=1, for the GPU kernels
            in Triton's interpreter.
        seconds: time limit; kernels not examined by then stay off.
        tell: receives a line about each step.

    Returns:
        The verdict, already written to its file.

    Raises:
        ValueError: the device does not exist or has no kernels to examine.
        OSError: the verdict cannot be written.
        RuntimeError: the device is busy, out of memory or gone; nothing is written.
    """
    device = pick_device(device)
    units = _units(device)
    if not units:
        without = f" ({cpu.AMX_MISSING})" if device.type == "cpu" else ""
        raise ValueError(f"device {str(device)!r} has no kernels to qualify{without}: give a CUDA device")
    _check_place()
    exam = Exam(str(device), seconds, tell or (lambda line: None))
    results: dict[str, dict[str, Any]] = {}
    for unit, standing in exam.run(units).items():
        results.setdefault(unit.backend, {})[unit.name] = standing
    if exam.key is None or not results:
        raise Unavailable(f"no kernel could be examined on {device}: {exam.refusal or 'there was no time'}")
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found = Verdict(verdict.path_of(exam.key), exam.key, made, results)
    verdict.write(found)
    return found


def _units(device: torch.device) -> list[Unit]:
    """Return the kinds of call to examine on a device."""
    names: tuple[str, ...] = QUALIFIED
    operators: tuple[str, ...] = OPS
    precisions = PRECISIONS.get(device.type, ())
    if device.type == "cpu" and not interprets():
        names = () if cpu.AMX_MISSING else (verdict.AMX,)
        operators, precisions = verdict.AMX_OPS, PRECISIONS[verdict.AMX]
    return [Unit(*each) for each in product(names, operators, precisions, (False, True))]


def _check_place() -> None:
    """Raise OSError before the work if the verdict cannot be written."""
    path = verdict.path_of({})
    place = path if path.is_dir() else path.parent
    try:
        if place == path:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        words = f"{error.strerror or error}; {verdict.VARIABLE} names another folder or file for the verdict"
        raise OSError(error.errno, words, str(place)) from error


class Exam:
    """Examine kinds of call on a device.

    Args:
        device: name of the device.
        seconds: time limit.
        tell: receives a line about each step.

    Attributes:
        key: the hardware and software for which the verdict holds, as the processes report it; None before they do.
        refusal: the reason why a backend refused a kind of call; "" if none did.
    """

    def __init__(self, device: str, seconds: float, tell: Tell) -> None:
        self.device, self.tell = device, tell
        self.deadline = time.monotonic() + seconds
        self.patience = min(PATIENCE, seconds / 2)
        self.key: verdict.Key | None = None
        self.refusal = ""
        self._passed: dict[Unit, list[dict[str, Any]]] = {}  # the speeds from each process that found it correct
        self._over: dict[Unit, dict[str, Any] | None] = {}  # the final results of other units; None if refused
        self._stop = threading.Event()

    def run(self, units: Sequence[Unit]) -> dict[Unit, dict[str, Any]]:
        """Examine kinds of call and return the results (`Verdict.results`) of all that the backend does not refuse.

        Precisions run in parallel, because compilation takes most of the time. In the last round, which measures speed,
        they do not.

        Raises:
            Unavailable: the device cannot be used.
        """
        self._passed = {unit: [] for unit in units}
        groups = [[unit for unit in units if unit.precision == each] for each in {unit.precision: 0 for unit in units}]
        for number in range(1, ROUNDS):
            try:
                self._side_by_side(groups, number)
            except Unavailable:  # the device may have room for one process only
                self._stop.clear()
                self._round(units, number)
        self._round(units, ROUNDS)
        standings: dict[Unit, dict[str, Any]] = {}
        for unit, passed in self._passed.items():
            right = {"correct": True, **passed[-1]} if len(passed) == ROUNDS else {"why": "there was no time"}
            standing = self._over.get(unit, right)
            if standing is not None:
                standings[unit] = standing
        return standings

    def _side_by_side(self, groups: Sequence[Sequence[Unit]], number: int) -> None:
        with ThreadPoolExecutor(min(len(groups), os.cpu_count() or 1)) as pool:
            try:
                list(pool.map(self._round, groups, [number] * len(groups)))
            except BaseException:
                self._stop.set()
                raise

    def _round(self, units: Sequence[Unit], number: int) -> None:
        """Examine the units that passed all earlier rounds in a fresh process, and in further ones if it ends early."""
        left = [unit for unit in units if unit not in self._over and len(self._passed[unit]) == number - 1]
        while left and not self._is_over():
            before = len(left)
            self._process(left, number)
            left = [unit for unit in left if unit not in self._over and len(self._passed[unit]) < number]
            if len(left) == before and not self._is_over():
                raise Unavailable(f"a process on {self.device} ended without an answer")

    def _is_over(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self.deadline

    def _process(self, units: Sequence[Unit], number: int) -> None:
        """Let one process examine kinds of call until it ends or is killed."""
        job = {"device": self.device, "units": units, "seed": 100 * number, "last": number == ROUNDS}
        with _Process(job) as process:
            at, unit, waiting = "", None, time.monotonic()
            patience = PATIENCE  # the start may take this long, whatever the time limit of a check
            while True:
                line = process.line()
                now = time.monotonic()
                if self._is_over():
                    return
                if line is None and now - waiting < patience:
                    continue
                if not line:
                    ended = process.ended() if line == "" else f"no answer in {patience:.0f} s"
                    if not ended:
                        return
                    if unit is None:
                        raise Unavailable(f"a process on {self.device} cannot begin: {ended}")
                    why = {"correct": False, "why": f"{at}: {ended}"}
                    self._settle(unit, why, f"round {number} of {ROUNDS}: {unit}")
                    return
                waiting, patience, message = now, self.patience, json.loads(line)
                if "unavailable" in message:
                    raise Unavailable(f"{self.device} cannot be used: {message['unavailable']}")
                if "key" in message:
                    if self.key not in (None, message["key"]):
                        raise Unavailable("the kernels or the device have changed meanwhile")
                    self.key = message["key"]
                    continue
                unit, at = Unit(*message.pop("unit")), message.get("at", at)
                if "at" not in message:
                    self._settle(unit, message, f"round {number} of {ROUNDS}: {unit}")
                    unit = None

    def _settle(self, unit: Unit, message: dict[str, Any], label: str) -> None:
        if "refused" in message:
            self.refusal, self._over[unit] = message["refused"], None
        elif message.pop("correct"):
            self._passed[unit].append(message)
            self.tell(f"{label}: right")
        else:
            self._over[unit] = {"correct": False, **message}
            self.tell(f"{label}: WRONG: {message['why']}")


class _Process:
    """Run a job in a process; leaving the context kills it and the processes that it started."""

    def __init__(self, job: dict[str, Any]) -> None:
        path = os.pathsep.join(place for place in sys.path if place)  # so that it imports the same packages
        settings = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "liif_fast.qualification.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has already ended
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # closed
            for line in self._process.stdout:
                if line.endswith("\n"):  # a process that is killed may leave half a line
                    self._lines.put(line)
        self._lines.put("")

    def line(self) -> str | None:
        """Return the next line, "" after the last, None if none arrives within a second."""
        try:
            return self._lines.get(timeout=1)
        except queue.Empty:
            return None

    def ended(self) -> str:
        """Return how the process failed, "" if it did not; raise Unavailable if another program killed it."""
        try:
            code = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:  # for example, it hangs in the driver
            return "the process does not end"
        if code in (-getattr(signal, "SIGKILL", 9), -signal.SIGTERM):
            raise Unavailable("a process was killed, perhaps because memory ran out")
        if code < 0:
            return f"the process ends by {signal.Signals(-code).name}"
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"the process ends with exit code {code}{': ' if last else ''}{''.join(last)[:300]}" if code else ""

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver may never release it
            self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
