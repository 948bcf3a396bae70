"""Tell a signal that somebody sends again from one that comes twice at once."""

import math
import signal
import time
from typing import NoReturn

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
