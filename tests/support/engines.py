"""The engines that this machine has, for the suites that run against each of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from controller.backends.base import Backend
from controller.backends.docker.backend import DockerBackend
from controller.backends.process.backend import ProcessBackend
from controller.errors import BackendUnavailableError, ImagePullingError, TransientEngineError
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Outcome, Phase
from tests.support.cluster import IMAGE as CLUSTER_IMAGE
from tests.support.cluster import session_namespace, trouble
from tests.support.memory_backend import MemoryBackend, MemoryEngine

SHELL_IMAGE = "busybox:stable"  # any image with /bin/sh
DEADLINE = 60.0  # seconds that a condition may take to come true on a busy machine


@dataclass
class Engine:
    """One engine, and how to reach it as yet another controller would."""

    name: str
    connect: Callable[[], Backend]
    real: bool  # commands run for real
    image: str | None = None  # what commands run in, where the engine has images
    installation: UUID = field(default_factory=uuid4)

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[Watched]:
        """An adapter that is open and observed, and closed at the end."""
        backend = self.connect()
        await backend.open(self.installation)
        watched = Watched(backend)
        task = asyncio.create_task(watched.watch())
        try:
            yield watched
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await backend.close()

    def launch(self, command: str, *, key: Key | None = None, timeout: int = 60, **rest: object) -> Launch:
        """A request with a key of its own."""
        key = key or Key(uuid4(), 1)
        image = self.image
        asked: dict[str, object] = {"image": image, "memory_mib": 64, "disk_mib": 16, **rest}
        return Launch(key, command, timeout, **asked)  # type: ignore[arg-type]


class Watched:
    """A backend, and everything that it has said so far."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.said: list[ObservedRun | Listing] = []
        self._news = asyncio.Condition()

    async def watch(self) -> None:
        """Takes in all that the backend observes."""
        async for sight in self.backend.observe():
            async with self._news:
                self.said.append(sight)
                self._news.notify_all()

    async def until(self, what: str, true: Callable[[], bool]) -> None:
        """Waits for a condition on what was said."""
        try:
            async with asyncio.timeout(DEADLINE), self._news:
                await self._news.wait_for(true)
        except TimeoutError:
            pytest.fail(f"never saw {what}; saw {self.said[-5:]}")

    async def reaches(self, key: Key, phase: Phase) -> ObservedRun:
        """Waits until a run of this attempt was seen in that phase."""

        def found() -> list[ObservedRun]:
            return [seen for seen in self.seen(key) if seen.phase is phase]

        await self.until(f"{key.name} {phase}", lambda: bool(found()))
        return found()[-1]

    async def lists(self, true: Callable[[Listing], bool], what: str = "such a listing") -> None:
        """Waits for a listing, made from now on, of which this is true."""
        start = len(self.said)
        await self.until(what, lambda: any(isinstance(one, Listing) and true(one) for one in self.said[start:]))

    def seen(self, key: Key) -> list[ObservedRun]:
        """Every look at runs of this attempt, oldest first."""
        looks: list[ObservedRun] = []
        for sight in self.said:
            looks += sight.runs if isinstance(sight, Listing) else (sight,)
        return [seen for seen in looks if seen.key == key]

    async def create(self, launch: Launch, *, look: bool = False) -> ObservedRun:
        """Creates as the controller does: after TransientEngineError it looks and tries again. Its run may follow."""
        before = {seen.run_uid for seen in self.seen(launch.key)}
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    made = await self.backend.create(launch, look=look)
                except ImagePullingError as away:
                    await (away.over or asyncio.sleep(0.5))
                except TransientEngineError:
                    look = True
                    await asyncio.sleep(0.05)
                else:
                    return made or await self._appears(launch.key, before)

    async def _appears(self, key: Key, before: set[str]) -> ObservedRun:
        """The run of an attempt that was just made: one that was not there before."""

        def new() -> list[ObservedRun]:
            return [seen for seen in self.seen(key) if seen.run_uid not in before]

        await self.until(f"a run of {key.name}", lambda: bool(new()))
        return new()[0]

    async def start(self, launch: Launch) -> ObservedRun:
        """Creates and releases."""
        made = await self.create(launch)
        await self.backend.release(launch.key, made.run_uid)
        return made

    async def run(self, launch: Launch) -> ObservedRun:
        """Creates, releases, and waits for the end."""
        await self.start(launch)
        return await self.reaches(launch.key, Phase.ENDED)


async def ended(watched: Watched, launch: Launch) -> tuple[ObservedRun, Outcome, bytes]:
    """Runs it to its end; how it ended and all its output."""
    seen = await watched.run(launch)
    assert seen.outcome is not None
    output = await watched.backend.output(launch.key, seen.run_uid, 1 << 20)
    return seen, seen.outcome, output.tail


def required() -> set[str]:
    """The backends that must be here: REQUIRE_BACKENDS, by commas."""
    return set(filter(None, os.environ.get("REQUIRE_BACKENDS", "").split(",")))


def missing(name: str, why: str) -> None:
    """Skips, or fails where the backend is required."""
    if name in required():
        pytest.fail(f"the backend {name} is required (REQUIRE_BACKENDS) and missing: {why}")
    pytest.skip(f"backend {name}: {why}")


def make_engine(name: str, directory: Path) -> Engine:
    """The engine of that name, or a skip that says what is missing."""
    match name:
        case "memory":
            engine = MemoryEngine()
            return Engine(name, lambda: MemoryBackend(engine, list_seconds=0.2), real=False)
        case "process":
            return Engine(name, lambda: ProcessBackend(directory / "work"), real=True)
        case "docker":
            need_docker()
            return Engine(name, lambda: DockerBackend(SHELL_IMAGE, list_seconds=0.5), real=True, image=SHELL_IMAGE)
        case "kubernetes":
            need_cluster()
            return Engine(name, session_namespace().backend, real=True, image=CLUSTER_IMAGE)
    raise ValueError(f"no engine is called {name}")


@cache
def cluster_trouble() -> str | None:
    """Asked once: where no cluster answers, each question takes its time."""
    return trouble()


def need_cluster() -> None:
    """Skips where no cluster answers."""
    why = cluster_trouble()
    if why is not None:
        missing("kubernetes", why)


def need_docker() -> None:
    """Skips where no Docker engine answers or it can't have the image that the tests run in."""

    async def ask() -> None:
        backend = DockerBackend(SHELL_IMAGE)
        try:
            await backend.open(uuid4())
        finally:
            await backend.close()

    try:
        with ThreadPoolExecutor(1) as own:  # a coroutine may call this, and its thread's loop runs already
            own.submit(lambda: asyncio.run(ask())).result()
    except BackendUnavailableError as error:
        missing("docker", str(error))
    need_image(SHELL_IMAGE, "docker")


def need_image(image: str, name: str) -> None:
    """Skips where the Docker engine can't have an image that the tests of a backend run in."""
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
        pulled = subprocess.run(["docker", "pull", "-q", image], capture_output=True, text=True)
        if pulled.returncode:
            missing(name, f"the image {image} is not there and cannot be pulled: {pulled.stderr.strip()}")


@contextmanager
def derived_image(engine: Engine, text: str) -> Iterator[str]:
    """The engine's image and more, as that engine has it or can pull it: built by Docker, for a cluster pushed beside
    its own."""
    if engine.name == "kubernetes":
        need_docker()
    name = f"{str(engine.image).rpartition(':')[0]}-derived:{uuid4().hex}"
    build = ["docker", "build", "-q", "-t", name, "-"]
    subprocess.run(build, input=f"FROM {engine.image}\n{text}", capture_output=True, text=True, check=True)
    try:
        if engine.name == "kubernetes":
            pushed = subprocess.run(["docker", "push", "-q", name], capture_output=True, text=True)
            if pushed.returncode:
                pytest.skip(f"backend kubernetes: no image can be pushed for it: {pushed.stderr.strip()}")
        yield name
    finally:
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)
