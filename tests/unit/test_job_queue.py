"""Whose turn it is to get a Pod in a namespace whose quota does not suffice for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from orchestrator.nodes.kubernetes.job_queue import JobQueue


class Quota:
    """A namespace with room for so many Pods, of which others have ``others``, and the executors that are there."""

    def __init__(self, room: int, others: int = 0, lag: float = 0.0) -> None:
        self.room = room
        self.others = others
        self.lag = lag
        """Seconds until the quota takes note of the end of a Pod."""
        self.pods: list[int] = []
        self.most = 0
        self.tries = 0
        self.done: list[int] = []
        self.told: list[str] = []
        self.queue = JobQueue(lambda: len(self.pods))

    async def executor(
        self, number: int, until: Callable[[], Coroutine[Any, Any, object]], first: bool = False
    ) -> None:
        """Get a Pod, and have it until ``until`` is done."""
        order = self.queue.order(first=first)
        while number not in self.pods:
            async with self.queue.turn(order, self.told.append, lambda _: 60.0):
                self.tries += 1
                await asyncio.sleep(0)
                if len(self.pods) + self.others >= self.room:
                    self.queue.refused("no room")
                else:
                    self.pods.append(number)
                    self.most = max(self.most, len(self.pods))
                    self.queue.given()
        await until()
        self.pods.remove(number)
        self.done.append(number)
        self.others += 1
        asyncio.get_running_loop().call_later(self.lag, self.noticed)
        self.queue.ended()

    def noticed(self) -> None:
        self.others -= 1


async def soon() -> None:
    await asyncio.sleep(0.01)


def test_all_get_a_pod_in_their_order() -> None:
    async def run() -> Quota:
        quota = Quota(3)
        await asyncio.gather(*(quota.executor(each, soon) for each in range(12)))
        return quota

    quota = asyncio.run(run())
    assert quota.most == 3
    assert [each // 3 for each in quota.done] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert quota.tries <= 12 + 12
    assert "no room" in quota.told


def test_a_quota_that_lags_is_asked_in_its_time() -> None:
    async def run() -> Quota:
        quota = Quota(1, lag=0.25)
        await asyncio.gather(*(quota.executor(each, soon) for each in range(8)))
        return quota

    quota = asyncio.run(run())
    assert quota.done == list(range(8))
    assert quota.tries <= 8 + 7 + 3, "seven did not know of the quota"


def test_without_a_quota_nobody_waits_for_the_end_of_another() -> None:
    async def run() -> Quota:
        quota = Quota(1000)
        everybody = asyncio.Event()

        async def until() -> None:
            if quota.most == 100:
                everybody.set()
            await everybody.wait()

        await asyncio.wait_for(asyncio.gather(*(quota.executor(each, until) for each in range(100))), 5)
        return quota

    assert asyncio.run(run()).tries == 100


def test_who_is_awaited_comes_first() -> None:
    async def run() -> list[int]:
        quota = Quota(1)
        usual = [asyncio.create_task(quota.executor(each, soon)) for each in range(3)]
        await asyncio.sleep(0)
        await asyncio.gather(*usual, quota.executor(9, soon, first=True))
        return quota.done

    assert asyncio.run(run()) == [0, 9, 1, 2]


def test_room_that_others_leave_is_found() -> None:
    async def run() -> Quota:
        quota = Quota(1, others=1)
        task = asyncio.create_task(quota.executor(1, soon))
        await asyncio.sleep(0.01)
        assert quota.tries == 1, "not asked for again and again"
        quota.others = 0
        quota.queue._probe_at = 0.0  # the pause is over
        quota.queue._admit()
        await task
        return quota

    assert asyncio.run(run()).done == [1]


def test_who_gives_up_leaves_the_queue() -> None:
    async def run() -> Quota:
        quota = Quota(1)
        gate = asyncio.Event()
        first = asyncio.create_task(quota.executor(0, gate.wait))
        await asyncio.sleep(0.01)
        second, third = (asyncio.create_task(quota.executor(each, soon)) for each in (1, 2))
        await asyncio.sleep(0.01)
        second.cancel()
        gate.set()
        await asyncio.gather(first, third)
        return quota

    assert asyncio.run(run()).done == [0, 2]


def test_impatience_is_an_error_of_who_waits() -> None:
    async def run() -> str:
        quota = Quota(0)

        def impatient(words: str) -> float:
            raise TimeoutError(words)

        waiting = asyncio.create_task(quota.executor(0, soon))
        await asyncio.sleep(0.01)
        try:
            async with quota.queue.turn(quota.queue.order(), quota.told.append, impatient):
                return "a turn"
        except TimeoutError as error:
            return str(error)
        finally:
            waiting.cancel()

    assert asyncio.run(run()) == "no room"
