"""What ends on a Docker engine before a stack's containers go: its sandboxes, and what an interrupted `up` left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pulumi

from controller.backends.docker.api import SLOW, STREAM, Engine, EngineError
from controller.errors import TransientEngineError
from infra.ending.hooks import Ending, known, last_said, typed_here
from infra.preflight.engine import engine_host

POLL_SECONDS = 0.2
MARGIN_SECONDS = 60.0  # beyond the drain's own limit: for its start, and for its last words


class DockerEnd:
    """Ends what a controller runs. `drains`: a container that does, None where commands run inside the controller's."""

    def __init__(self, name: str, ending: Ending, drains: pulumi.Output[Any] | None) -> None:
        self._name, self._ending, self._drains = name, ending, drains
        self._done = False

    async def drain(self) -> None:
        """Stops the controller, so that nothing is claimed any more, and ends every sandbox.

        Raises EndRefused; then the controller runs again.
        """
        async with _engine() as engine:
            try:
                await _tried(engine, "POST", f"containers/{self._name}-app/stop", timeout=SLOW)
                await self._drain(engine, await self._body())
            except BaseException:
                await _tried(engine, "POST", f"containers/{self._name}-app/start", timeout=SLOW)
                raise

    async def drain_alone(self) -> None:
        """The same once the container is deleted: one that is there was left by an `up` that was killed."""
        async with _engine() as engine:
            await _removed(engine, f"{self._name}-app")
            if not self._done and self._drains is not None:
                await self._drain(engine, await known(self._drains))

    async def _body(self) -> Any:
        """Of a container that drains, None where none is to. Raises EndRefused where it is not known any more."""
        if self._drains is None or self._ending.seconds == 0:
            return None
        body = await known(self._drains)
        if body is None:
            raise self._ending.forgotten()
        return body

    async def _drain(self, engine: Engine, body: Any) -> None:
        if body is not None and self._ending.seconds > 0:
            pulumi.log.info(f"ends every sandbox, and waits for it up to {self._ending.seconds} s")
            try:
                async with asyncio.timeout(self._ending.seconds + MARGIN_SECONDS):
                    said, code = await self._run(engine, body)
            except TimeoutError as error:
                raise self._ending.refused(f"the container {self._name}-drain does not end") from error
            except TransientEngineError as error:
                raise self._ending.refused(f"the container {self._name}-drain did not do it ({error})") from error
            if code:
                raise self._ending.refused(last_said(said) or f"`drain` ended with {code}, and said nothing")
        self._done = True

    async def _run(self, engine: Engine, body: Any) -> tuple[list[str], int]:
        """What a container of that body says of the drain, and its exit code. It is gone afterwards."""
        name, said = f"{self._name}-drain", list[str]()
        await _removed(engine, name)
        try:
            await engine.json("POST", "containers/create", params={"name": name}, body=body)
            await engine.send("POST", f"containers/{name}/start", timeout=SLOW)
            async for written in _lines(engine, name):
                line = typed_here(written, f"docker exec {self._name}-app")
                if line.startswith("drain: "):
                    pulumi.log.info(line)
                    said.append(line)
            ended = await engine.json("POST", f"containers/{name}/wait", timeout=SLOW)
            return said, int(ended["StatusCode"])
        finally:
            await _removed(engine, name)


async def remove(*containers: str, networks: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
    """Removes these, as far as they are there."""
    async with _engine() as engine:
        for container in containers:
            await _removed(engine, container)
        for path in [*(f"networks/{name}" for name in networks), *(f"volumes/{name}" for name in volumes)]:
            await _tried(engine, "DELETE", path)


@asynccontextmanager
async def _engine() -> AsyncIterator[Engine]:
    engine = Engine(engine_host())  # the provider's choice too
    try:
        yield engine
    finally:
        await engine.close()


async def _removed(engine: Engine, container: str) -> None:
    """Returns once it is gone. Raises EngineError, also where another removal of it does not come to its end."""
    give_up = time.monotonic() + MARGIN_SECONDS
    while True:
        try:
            return await _tried(
                engine, "DELETE", f"containers/{container}", params={"force": "1", "v": "1"}, timeout=SLOW
            )
        except EngineError as error:
            if error.status != 409 or time.monotonic() > give_up:
                raise
        await asyncio.sleep(POLL_SECONDS)  # another removal is under way


async def _tried(engine: Engine, method: str, path: str, **more: Any) -> None:
    """Sends it; nothing where the container is gone."""
    try:
        await engine.send(method, path, **more)
    except EngineError as error:
        if error.status != 404:
            raise


async def _lines(engine: Engine, container: str) -> AsyncIterator[str]:
    """What it says, line by line, until it ends."""
    rest, params = b"", {"follow": "1", "stdout": "1", "stderr": "1"}
    async with engine.request("GET", f"containers/{container}/logs", params=params, timeout=STREAM) as response:
        async for chunk in response.content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").strip()
