"""A queue of jobs for the model's thread: the newest runs first, and those whose clients have gone are dropped."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MOST_WAITING = 64

Gone = Callable[[], Awaitable[bool]]


class BusyError(Exception):
    """Too many requests are waiting."""


class GoneError(Exception):
    """The client went away before its turn came."""


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.clients = work, list[Gone]()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        self.result.set_exception(error)
        self.result.exception()  # read here, because no client may be left to read it

    async def wanted(self) -> bool:
        asked: set[Gone] = set()
        while left := [gone for gone in self.clients if gone not in asked]:  # one may join while another is asked
            if not await left[0]():
                return True
            asked.add(left[0])
        return False


class Queue:
    """Run jobs one after the other in one thread, because PyTorch uses all cores for each of them.

    Args:
        most: how many jobs may wait.

    Attributes:
        counts: jobs `made`, requests that `shared` the job of an equal one, jobs `dropped` because all their clients
            had gone, and requests `refused` because too many waited.
    """

    def __init__(self, most: int = MOST_WAITING) -> None:
        self.counts = {"made": 0, "shared": 0, "dropped": 0, "refused": 0}
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="liif_fast-model")
        self._jobs: dict[str, _Job] = {}  # waiting and running
        self._waiting: list[str] = []
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Return how many jobs wait for the thread."""
        return len(self._waiting)

    async def run(self, key: str, work: Callable[[], Any], gone: Gone) -> Any:
        """Run `work()` in the thread and return its result, or wait for the result of an equal job.

        Args:
            key: equal for jobs of equal results.
            work: the job.
            gone: tells whether the client has gone; asked when the job's turn comes.

        Raises:
            BusyError: too many jobs wait.
            GoneError: every client of the job has gone.
            Exception: what `work` raises.
        """
        if key not in self._jobs and len(self._waiting) >= self._most:
            await self._sweep()
        job = self._jobs.get(key)
        if job is not None:
            self.counts["shared"] += 1
            if key in self._waiting:  # it is the newest now
                self._waiting.remove(key)
                self._waiting.append(key)
        else:
            if len(self._waiting) >= self._most:
                self.counts["refused"] += 1
                raise BusyError
            job = self._jobs[key] = _Job(work)
            self._waiting.append(key)
        job.clients.append(gone)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        try:
            return await asyncio.shield(job.result)
        finally:
            job.clients.remove(gone)  # a cancelled request wants nothing any more

    async def _sweep(self) -> None:
        """Drop the waiting jobs whose clients have gone, so that they take no place from those who wait."""
        for key in tuple(self._waiting):
            job = self._jobs.get(key)
            if job is not None and not await job.wanted() and key in self._waiting and self._jobs[key] is job:
                self._waiting.remove(key)
                del self._jobs[key]
                self.counts["dropped"] += 1
                job.fail(GoneError())

    def close(self) -> None:
        """End the thread after its current job."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting:
            key = self._waiting.pop()
            job = self._jobs[key]
            try:
                if not await job.wanted():
                    self.counts["dropped"] += 1
                    raise GoneError
                made = await asyncio.get_running_loop().run_in_executor(self._thread, job.work)
                self.counts["made"] += 1
            except Exception as error:
                job.fail(error)
            else:
                job.result.set_result(made)
            del self._jobs[key]
        self._runner = None
