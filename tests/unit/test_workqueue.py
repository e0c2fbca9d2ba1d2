"""The work queue: news is never lost, nothing is processed twice at once, and failures back off key by key."""

from __future__ import annotations

import asyncio

from controller.reconcile.workqueue import Again, Done, Result, RetryLater, WorkQueue
from tests.support.fake_clock import FakeClock

BACKOFF = (1.0, 8.0)


class Work:
    """Answers for each key as told, at once or when the test lets it; notes when what was processed."""

    def __init__(self, *answers: Result) -> None:
        self.clock, self.answers = FakeClock(), list(answers)
        self.processed: list[tuple[str, float]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way: set[str] = set()
        self.queue: WorkQueue[str] = WorkQueue(self._process, BACKOFF, self.clock.schedule)

    async def _process(self, key: str) -> Result:
        self.processed.append((key, self.clock.now))
        assert key not in self.under_way
        self.under_way.add(key)
        await self.gate.wait()
        self.under_way.remove(key)
        return self.answers.pop(0) if self.answers else Done()

    async def settle(self) -> None:
        """Lets everything happen that can happen now."""
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.processed]


async def test_an_added_key_is_processed_once() -> None:
    work = Work()
    work.queue.add("a")
    await work.settle()
    assert work.processed == [("a", 0.0)]
    assert not work.queue.is_processing("a")


async def test_a_key_that_made_progress_is_processed_again_at_once() -> None:
    work = Work(Again(), Again(), Done())
    work.queue.add("a")
    await work.settle()
    assert work.times == [0.0, 0.0, 0.0]


async def test_whatever_comes_while_a_key_is_processed_is_one_more_time_and_not_at_the_same_time() -> None:
    work = Work(Done(), Done())
    work.gate.clear()
    work.queue.add("a")
    await work.settle()
    for _ in range(3):
        work.queue.add("a")
    await work.settle()
    assert len(work.processed) == 1
    work.gate.set()
    await work.settle()
    assert len(work.processed) == 2


async def test_keys_are_processed_beside_each_other() -> None:
    work = Work()
    work.gate.clear()
    work.queue.add("a")
    work.queue.add("b")
    await work.settle()
    assert [key for key, _ in work.processed] == ["a", "b"]
    assert work.queue.is_processing("a")
    assert work.queue.is_processing("b")
    work.gate.set()
    await work.settle()


async def test_failures_back_off_up_to_a_limit() -> None:
    work = Work(*[RetryLater()] * 9)
    work.queue.add("a")
    for _ in range(120):
        await work.settle()
        work.clock.passes(0.5)
    await work.settle()
    assert work.times == [0, 1, 3, 7, 15, 23, 31, 39, 47, 55]  # after 1, 2, 4, 8, 8, ... seconds; then it is done


async def test_news_while_it_is_processed_is_not_held_up_by_its_failure() -> None:
    work = Work(RetryLater(), Done())
    work.gate.clear()
    work.queue.add("a")
    await work.settle()
    work.queue.add("a")
    work.gate.set()
    await work.settle()
    assert work.times == [0.0, 0.0]
    work.clock.passes(100.0)
    await work.settle()
    assert len(work.processed) == 2


async def test_news_ends_a_backoff_and_resets_it() -> None:
    work = Work(RetryLater(), RetryLater(), RetryLater(), RetryLater())
    work.queue.add("a")
    await work.settle()
    work.clock.passes(1.0)
    await work.settle()  # the next try is due at 3
    work.clock.passes(1.0)
    work.queue.add("a")
    await work.settle()
    assert work.times == [0.0, 1.0, 2.0]
    work.clock.passes(1.0)  # after the first backoff, not the third
    await work.settle()
    assert work.times == [0.0, 1.0, 2.0, 3.0]


async def test_progress_resets_the_backoff() -> None:
    work = Work(RetryLater(), Again(), RetryLater(), Done())
    work.queue.add("a")
    await work.settle()
    work.clock.passes(1.0)
    await work.settle()
    work.clock.passes(1.0)
    await work.settle()
    assert work.times == [0.0, 1.0, 1.0, 2.0]


async def test_a_retry_may_name_its_own_time() -> None:
    work = Work(RetryLater(5.0), RetryLater(), Done())
    work.queue.add("a")
    await work.settle()
    work.clock.passes(4.9)
    await work.settle()
    assert work.times == [0.0]
    work.clock.passes(0.1)
    await work.settle()
    assert work.times == [0.0, 5.0]


async def test_without_news_a_key_is_not_processed_in_its_backoff_nor_twice_at_once() -> None:
    work = Work(RetryLater(), Done(), Done())
    work.gate.clear()
    work.queue.add_if_idle("a")
    await work.settle()
    work.queue.add_if_idle("a")
    work.gate.set()
    await work.settle()
    work.queue.add_if_idle("a")
    await work.settle()
    assert work.times == [0.0]
    work.clock.passes(1.0)
    await work.settle()
    work.queue.add_if_idle("a")
    await work.settle()
    assert work.times == [0.0, 1.0, 1.0]


async def test_drain_waits_for_what_is_processed_and_no_longer_than_it_may() -> None:
    work = Work()
    work.gate.clear()
    work.queue.add("a")
    await work.queue.drain(0.0)
    assert work.queue.is_processing("a")
    work.gate.set()
    await work.queue.drain(60.0)
    assert not work.queue.is_processing("a")
    await work.queue.drain(60.0)  # nothing is left
