"""Unwind the program after a signal as after Ctrl-C, once even if the signal comes twice at once."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AT_ONCE = 1.0  # seconds


class Repeats:
    """Recognise repetitions of a request to stop.

    A closed terminal sends SIGHUP from the system and from the shell, within a millisecond; service managers send
    SIGTERM and SIGHUP together. Such a repetition must not interrupt the cleaning up that the first signal has begun.
    """

    def __init__(self) -> None:
        self.first = -math.inf

    def repeats(self) -> bool:
        """Return whether a signal that has arrived now belongs to an earlier one."""
        now = time.monotonic()
        if now - self.first < AT_ONCE:
            return True
        self.first = now
        return False


def end(signum: int) -> NoReturn:
    """Raise KeyboardInterrupt for Ctrl-C, SystemExit(128 + signum) for other signals."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


_raised: list[int] = []  # the signals that have unwound something, within `unwinding`


def insist() -> None:
    """End again if a signal should have ended the command: libraries turn its exception into errors of their own.

    It counts also if a library caught the exception on purpose, because a later error does not tell the two apart.
    """
    if _raised:
        end(_raised[-1])


@contextmanager
def unwinding(last: bool) -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the main thread like Ctrl-C, so that no half-written file is left.

    With `last` the process ends afterwards. Signals then end it as the system does; otherwise Python would print a
    traceback while it shuts down. Signals that are ignored, as by nohup, stay so.
    """
    repeats, report, outer = Repeats(), sys.unraisablehook, _raised.copy()
    resending: list[threading.Thread] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if not repeats.repeats():
            _raised.append(signum)
            end(signum)

    def again(lost: Any) -> None:
        """Send a signal again whose exception Python drops, as after a fork and in a weak reference's callback."""
        if not _raised or lost.exc_type not in (KeyboardInterrupt, SystemExit):
            report(lost)
            return
        repeats.first = -math.inf
        resending.append(threading.Timer(0.01, os.kill, (os.getpid(), _raised[-1])))
        resending[-1].start()

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses to set handlers
    before = {each: signal.getsignal(each) for each in STOPS if main}
    # None is a handler that Python has not set and cannot restore.
    heeded = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in heeded:
        signal.signal(each, stop)
    if main:
        _raised.clear()
        sys.unraisablehook = again
    try:
        try:
            yield
        finally:
            for timer in resending:
                timer.join()  # so that the signal comes while its handler is there
    finally:
        if main:
            _raised[:] = outer
            sys.unraisablehook = report
        for signum, handler in heeded.items():
            signal.signal(signum, signal.SIG_DFL if last else handler)


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait until the context ends, for code that an exception at any moment would leave half done.

    Processes that are forked within it hold their signals until they set handlers of their own.
    """
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in STOPS if main}
    holding = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in holding:
        signal.signal(each, lambda signum, frame: arrived.append(signum))
    try:
        yield
    finally:
        for each, handler in holding.items():
            signal.signal(each, handler)
        for signum in arrived:
            signal.raise_signal(signum)
