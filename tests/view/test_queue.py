"""Jobs run in one thread, the newest first; equal ones are shared, stale ones dropped, and too many refused."""

import asyncio
import threading

import pytest

from liif_fast.view.queue import BusyError, GoneError, Queue


async def here():
    return False


async def gone():
    return True


class Held:
    """Make jobs that note their names; the first one waits until it is released."""

    def __init__(self):
        self.free, self.order = threading.Event(), []

    def job(self, name):
        def work():
            if name == "first":
                assert self.free.wait(20)
            self.order.append(name)
            return name

        return work


async def filled(queue, held, names, client=here):
    """Start the first job, then let the others wait behind it."""
    tasks = [asyncio.create_task(queue.run("first", held.job("first"), here))]
    while queue.waiting or not queue._jobs:
        await asyncio.sleep(0.001)
    for name in names:
        tasks.append(asyncio.create_task(queue.run(name, held.job(name), client)))
        await asyncio.sleep(0)
    return tasks


def test_clients_that_have_gone_take_no_place():
    """A full queue of abandoned requests accepts a new one; requests whose clients still wait stay."""

    async def play():
        queue, held = Queue(most=4), Held()
        tasks = await filled(queue, held, "abc", gone)
        tasks.append(asyncio.create_task(queue.run("kept", held.job("kept"), here)))
        await asyncio.sleep(0)
        assert queue.waiting == 4
        tasks.append(asyncio.create_task(queue.run("new", held.job("new"), here)))
        while queue.counts["dropped"] < 3:
            await asyncio.sleep(0.001)
        held.free.set()
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert first == "first"
        assert [type(each) for each in others[:3]] == [GoneError] * 3
        assert others[3:] == ["kept", "new"]
        assert held.order == ["first", "new", "kept"]
        assert queue.counts == {"made": 3, "shared": 0, "dropped": 3, "refused": 0}
        queue.close()

    asyncio.run(play())


def test_the_newest_comes_first():
    async def play():
        queue, held = Queue(), Held()
        tasks = await filled(queue, held, "abc")
        held.free.set()
        assert await asyncio.gather(*tasks) == ["first", *"abc"]
        assert held.order == ["first", "c", "b", "a"]
        assert queue.counts == {"made": 4, "shared": 0, "dropped": 0, "refused": 0}
        assert queue.waiting == 0
        assert await queue.run("again", lambda: 7, here) == 7
        queue.close()

    asyncio.run(play())


def test_who_has_gone_is_dropped_before_any_work():
    async def play():
        queue, held = Queue(), Held()
        tasks = await filled(queue, held, "ab", gone)
        held.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [str, GoneError, GoneError]
        assert held.order == ["first"]
        assert queue.counts["dropped"] == 2
        queue.close()

    asyncio.run(play())


def test_a_cancelled_request_is_dropped_and_the_next_one_served():
    async def play():
        queue, held = Queue(), Held()
        tasks = await filled(queue, held, "ab")
        tasks[2].cancel()
        tasks[0].cancel()  # its work goes on in the thread, which is then free
        await asyncio.sleep(0.01)
        held.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [asyncio.CancelledError, str, asyncio.CancelledError]
        assert held.order == ["first", "a"]
        queue.close()

    asyncio.run(play())


def test_equal_requests_share_one_job():
    async def play():
        queue, held = Queue(), Held()
        tasks = await filled(queue, held, "abaa")
        tasks.append(asyncio.create_task(queue.run("first", held.job("first"), here)))
        tasks.append(asyncio.create_task(queue.run("a", held.job("a"), gone)))  # one of its clients is still there
        await asyncio.sleep(0.01)
        held.free.set()
        assert await asyncio.gather(*tasks) == ["first", "a", "b", "a", "a", "first", "a"]
        assert held.order == ["first", "a", "b"]  # asked for again, a is the newest
        assert queue.counts["shared"] == 4
        queue.close()

    asyncio.run(play())


def test_who_joins_while_the_others_are_asked_is_served():
    async def play():
        queue, asking, answer = Queue(), asyncio.Event(), asyncio.Event()

        async def slowly_gone():
            asking.set()
            await answer.wait()
            return True

        first = asyncio.create_task(queue.run("a", lambda: 1, slowly_gone))
        await asking.wait()
        second = asyncio.create_task(queue.run("a", lambda: 1, here))
        await asyncio.sleep(0)
        answer.set()
        assert await second == 1
        await first
        queue.close()

    asyncio.run(play())


def test_more_than_the_limit_are_refused():
    async def play():
        queue, held = Queue(most=3), Held()
        tasks = await filled(queue, held, "abc")
        with pytest.raises(BusyError):
            await queue.run("d", held.job("d"), here)
        assert queue.counts["refused"] == 1
        held.free.set()
        await asyncio.gather(*tasks)
        assert await queue.run("e", lambda: 1, here) == 1
        queue.close()

    asyncio.run(play())


def test_an_error_reaches_its_clients_and_nobody_else():
    async def play():
        queue = Queue()

        def fails():
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await queue.run("a", fails, here)
        assert await queue.run("a", lambda: 1, here) == 1
        queue.close()

    asyncio.run(play())
