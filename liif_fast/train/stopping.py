"""Ctrl-C, SIGTERM and a closed terminal as a request that the training loop grants when its step is done."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from liif_fast import distributed

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """Within it a first signal only sets `signum`; a second ends the process at once. It may be entered again.

    With several processes a second one is ignored, since a terminal and torchrun both send Ctrl-C on; torchrun itself
    kills what has not ended after half a minute.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # only there Python may
            for signum in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and distributed.world_size() == 1:
            end(signum)
        self.signum = signum


def end(signum: int) -> NoReturn:
    """End as the signal would have: KeyboardInterrupt for Ctrl-C, else exit code 128 + signum."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)
