"""Turn Ctrl-C, SIGTERM and a closed terminal into a request that the training loop grants after its step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from liif_fast import distributed
from liif_fast.signals import STOPS, Repeats, end


class Stop:
    """A reentrant context in which the first signal only sets `signum` and a later one ends the process.

    What comes within a second of the first belongs to it (`liif_fast.signals`). With several processes every later
    signal is ignored, because the terminal and torchrun both forward Ctrl-C. torchrun itself kills processes that have
    not ended after half a minute.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the signals so far."""
        self.signum, self._repeats = 0, Repeats()

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses to set handlers
            for signum in STOPS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._repeats.repeats():
            return
        if self.signum and distributed.world_size() == 1:
            end(signum)
        self.signum = signum
