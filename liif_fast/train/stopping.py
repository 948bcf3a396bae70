"""Turn Ctrl-C, SIGTERM and a closed terminal into a request that the training loop grants after its step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from liif_fast import distributed

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """A reentrant context in which the first signal only sets `signum` and the second ends the process.

    With several processes the second signal is ignored, because the terminal and torchrun both forward Ctrl-C.
    torchrun itself kills processes that have not ended after half a minute.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses to set handlers
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
    """Raise KeyboardInterrupt for Ctrl-C, SystemExit(128 + signum) for other signals."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)
