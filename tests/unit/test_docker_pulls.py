"""Pulls in the background: how many at once, for whom, and what one silent registry cannot hold up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from controller.backends.docker import pulls as module
from controller.backends.docker.login import registry_of
from controller.backends.docker.pulls import Pulls
from controller.errors import ImagePullingError, RequestRejectedError, TransientEngineError
from controller.protocol.model import Key, Reason


class Engine:
    """Pulls when it is told to."""

    def __init__(self) -> None:
        self.under_way: dict[str, asyncio.Future[None]] = {}
        self.heard: dict[str, Callable[[], None]] = {}
        self.began: list[str] = []
        self.pulls = Pulls(self._fetch, registry_of)

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

    async def end(self, image: str, error: Exception | None = None) -> None:
        """Lets a pull end."""
        if error is None:
            self.under_way[image].set_result(None)
        else:
            self.under_way[image].set_exception(error)
        for _ in range(3):
            await asyncio.sleep(0)


def check(test: Callable[[Engine], Awaitable[None]]) -> None:
    async def go() -> None:
        engine = Engine()
        await test(engine)
        await engine.pulls.close()
        assert not engine.under_way

    asyncio.run(go())


def test_an_image_is_pulled_once_for_all_who_wait_and_each_is_told_its_end() -> None:
    async def test(engine: Engine) -> None:
        told = [await engine.ask("x.io/a:1", tenant) for tenant in ("one", "two")]
        assert engine.began == ["x.io/a:1"]
        assert str(told[0]) == "the image x.io/a:1 is being pulled"
        await engine.end("x.io/a:1")
        assert all(error.over is not None and error.over.done() for error in told)
        await engine.ask("x.io/a:1")  # somebody removed it since
        assert engine.began == ["x.io/a:1"] * 2

    check(test)


def test_a_failed_pull_is_told_to_those_who_waited_and_to_nobody_else() -> None:
    async def test(engine: Engine) -> None:
        key = Key(uuid4(), 1)
        await engine.ask("x.io/a:1", key=key)
        await engine.end("x.io/a:1", RequestRejectedError(Reason.IMAGE_PULL_FAILED, "no such image"))
        failure = engine.pulls.request("x.io/a:1", key, "default")
        assert isinstance(failure, RequestRejectedError)
        await engine.ask("x.io/a:1")  # another try, for another
        await engine.end("x.io/a:1", TransientEngineError("connection refused"))
        await engine.ask("x.io/a:1", key=key)  # its verdict was used up

    check(test)


def test_a_pull_that_may_yet_work_is_tried_again_later() -> None:
    async def test(engine: Engine) -> None:
        key = Key(uuid4(), 1)
        await engine.ask("x.io/a:1", key=key)
        await engine.end("x.io/a:1", TransientEngineError("connection refused"))
        again = engine.pulls.request("x.io/a:1", key, "default")
        assert isinstance(again, ImagePullingError)
        assert (str(again), again.over) == ("connection refused", None)

    check(test)


@pytest.mark.parametrize(
    ("images", "most"),
    [
        ([(f"h{number}.io/a", "one") for number in range(20)], module.PER_TENANT),
        ([(f"h.io/a{number}", f"t{number}") for number in range(20)], module.PER_REGISTRY),
        ([(f"h{number}.io/a", f"t{number}") for number in range(20)], module.AT_ONCE),
    ],
    ids=["a tenant's", "a registry's", "all"],
)
def test_pulls_at_once_are_limited(images: list[tuple[str, str]], most: int) -> None:
    async def test(engine: Engine) -> None:
        for image, tenant in images:
            told = await engine.ask(image, tenant)
        assert len(engine.under_way) == most
        assert "waits for other pulls" in str(told)
        await engine.end(engine.began[0])
        assert len(engine.under_way) == most
        assert len(engine.began) == most + 1

    check(test)


def test_what_a_tenant_waits_for_another_tenant_can_have_at_once() -> None:
    async def test(engine: Engine) -> None:
        for number in range(module.PER_TENANT + 1):
            await engine.ask(f"h{number}.io/a", "one")
        last = f"h{module.PER_TENANT}.io/a"
        assert last not in engine.under_way
        await engine.ask(last, "two")
        assert last in engine.under_way

    check(test)


def test_a_silent_pull_gives_up_its_place_first_and_then_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.2)

    async def test(engine: Engine) -> None:
        key = Key(uuid4(), 1)
        silent = await engine.ask("silent.io/0", key=key)
        for number in range(1, module.PER_TENANT + 4):
            await engine.ask(f"silent.io/{number}")
        await engine.ask("honest.io/a")
        assert "honest.io/a" not in engine.under_way
        async with asyncio.timeout(5):
            while "honest.io/a" not in engine.under_way:
                await asyncio.sleep(0.005)
        waiting = engine.began.index("honest.io/a")
        assert waiting == module.PER_TENANT  # before others of the registry that is known to be silent
        assert silent.over is not None
        async with asyncio.timeout(5):
            await silent.over
        failure = engine.pulls.request("silent.io/0", key, "default")
        assert "makes no progress" in str(failure)

    check(test)


def test_a_pull_that_goes_on_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.06)

    async def test(engine: Engine) -> None:
        told = await engine.ask("slow.io/a")
        for _ in range(10):
            await asyncio.sleep(0.02)
            engine.heard["slow.io/a"]()
        assert told.over is not None
        assert not told.over.done()

    check(test)


def test_silent_pulls_are_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "QUIET_AT_ONCE", 5)

    async def test(engine: Engine) -> None:
        first = await engine.ask("silent.io/0")
        for number in range(1, 30):
            await engine.ask(f"silent.io/{number}", f"t{number}")
        assert first.over is not None
        async with asyncio.timeout(5):
            await first.over
            while len(engine.began) < 30:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        assert len(engine.under_way) <= 5 + module.AT_ONCE

    check(test)
