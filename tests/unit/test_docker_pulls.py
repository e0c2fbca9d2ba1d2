"""Pulls in the background: how many at once, for whom, and what one silent registry cannot hold up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest

from controller.backends.docker.login import registry_of
from controller.backends.docker.pulls import PullLimits, Pulls
from controller.errors import ImagePullingError, RequestRejectedError, TransientEngineError
from controller.protocol.model import Key, Reason
from tests.support.fake_clock import FakeClock

LIMITS = PullLimits()


class Engine:
    """Pulls when it is told to."""

    def __init__(self) -> None:
        self.under_way: dict[str, asyncio.Future[None]] = {}
        self.heard: dict[str, Callable[[], None]] = {}
        self.began: list[str] = []
        self.clock = FakeClock()
        self.pulls = Pulls(self._fetch, registry_of, LIMITS, self.clock.schedule)

    async def _fetch(self, image: str, heard: Callable[[], None]) -> None:
        self.began.append(image)
        self.heard[image] = heard
        future = self.under_way[image] = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            del self.under_way[image]

    async def ask(self, image: str, tenant: str = "default", key: Key | None = None) -> ImagePullingError:
        """Asks for an image; what the attempt is told."""
        error = self.pulls.request(image, key or Key(uuid4(), 1), tenant)
        await asyncio.sleep(0)
        assert isinstance(error, ImagePullingError)
        return error

    async def passes(self, seconds: float) -> None:
        """Lets so many seconds pass, and everything happen that can happen then."""
        self.clock.passes(seconds)
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self, image: str, error: Exception | None = None) -> None:
        """Lets a pull end."""
        if error is None:
            self.under_way[image].set_result(None)
        else:
            self.under_way[image].set_exception(error)
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine, which pulls nothing any more at the end."""
    engine = Engine()
    yield engine
    await engine.pulls.close()
    assert not engine.under_way


async def test_an_image_is_pulled_once_for_all_who_wait_and_each_is_told_its_end(engine: Engine) -> None:
    told = [await engine.ask("x.io/a:1", tenant) for tenant in ("one", "two")]
    assert engine.began == ["x.io/a:1"]
    assert str(told[0]) == "the image x.io/a:1 is being pulled"
    await engine.end("x.io/a:1")
    assert all(error.over is not None and error.over.done() for error in told)
    await engine.ask("x.io/a:1")  # somebody removed it since
    assert engine.began == ["x.io/a:1"] * 2


async def test_a_failed_pull_is_told_to_those_who_waited_and_to_nobody_else(engine: Engine) -> None:
    key = Key(uuid4(), 1)
    await engine.ask("x.io/a:1", key=key)
    await engine.end("x.io/a:1", RequestRejectedError(Reason.IMAGE_PULL_FAILED, "no such image"))
    failure = engine.pulls.request("x.io/a:1", key, "default")
    assert isinstance(failure, RequestRejectedError)
    await engine.ask("x.io/a:1")  # another try, for another
    await engine.end("x.io/a:1", TransientEngineError("connection refused"))
    await engine.ask("x.io/a:1", key=key)  # its verdict was used up


async def test_a_pull_that_may_yet_work_is_tried_again_later(engine: Engine) -> None:
    key = Key(uuid4(), 1)
    await engine.ask("x.io/a:1", key=key)
    await engine.end("x.io/a:1", TransientEngineError("connection refused"))
    again = engine.pulls.request("x.io/a:1", key, "default")
    assert isinstance(again, ImagePullingError)
    assert (str(again), again.over) == ("connection refused", None)


@pytest.mark.parametrize(
    ("images", "most"),
    [
        ([(f"h{number}.io/a", "one") for number in range(20)], LIMITS.per_tenant),
        ([(f"h.io/a{number}", f"t{number}") for number in range(20)], LIMITS.per_registry),
        ([(f"h{number}.io/a", f"t{number}") for number in range(20)], LIMITS.at_once),
    ],
    ids=["a tenant's", "a registry's", "all"],
)
async def test_pulls_at_once_are_limited(images: list[tuple[str, str]], most: int, engine: Engine) -> None:
    for image, tenant in images:
        told = await engine.ask(image, tenant)
    assert len(engine.under_way) == most
    assert "waits for other pulls" in str(told)
    await engine.end(engine.began[0])
    assert len(engine.under_way) == most
    assert len(engine.began) == most + 1


async def test_what_a_tenant_waits_for_another_tenant_can_have_at_once(engine: Engine) -> None:
    for number in range(LIMITS.per_tenant + 1):
        await engine.ask(f"h{number}.io/a", "one")
    last = f"h{LIMITS.per_tenant}.io/a"
    assert last not in engine.under_way
    await engine.ask(last, "two")
    assert last in engine.under_way


async def test_a_silent_pull_gives_up_its_place_first_and_then_itself(engine: Engine) -> None:
    key = Key(uuid4(), 1)
    silent = await engine.ask("silent.io/0", key=key)
    for number in range(1, LIMITS.per_tenant + 4):
        await engine.ask(f"silent.io/{number}")
    await engine.ask("honest.io/a")
    await engine.passes(LIMITS.quiet - 0.1)
    assert "honest.io/a" not in engine.under_way
    await engine.passes(0.1)
    assert "honest.io/a" in engine.under_way
    waiting = engine.began.index("honest.io/a")
    assert waiting == LIMITS.per_tenant  # before others of the registry that is known to be silent
    assert silent.over is not None
    await engine.passes(LIMITS.silence - LIMITS.quiet - 0.1)
    assert not silent.over.done()
    await engine.passes(0.2)
    assert silent.over.done()
    failure = engine.pulls.request("silent.io/0", key, "default")
    assert "makes no progress" in str(failure)


async def test_a_pull_that_goes_on_is_not_given_up(engine: Engine) -> None:
    told = await engine.ask("slow.io/a")
    for _ in range(10):
        await engine.passes(LIMITS.silence - 1)
        engine.heard["slow.io/a"]()
    assert told.over is not None
    assert not told.over.done()


async def test_silent_pulls_are_bounded_and_the_oldest_goes(engine: Engine) -> None:
    count = LIMITS.quiet_at_once + 30
    first = await engine.ask("silent.io/0")
    for number in range(1, count):
        await engine.ask(f"silent.io/{number}", f"t{number}")
    assert first.over is not None
    for _ in range(count):
        await engine.passes(LIMITS.quiet)
        assert len(engine.under_way) <= LIMITS.quiet_at_once + LIMITS.at_once
    assert first.over.done()
    assert len(engine.began) == count
