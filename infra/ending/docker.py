"""The end of a stack on a Docker engine: its sandboxes, and what an interrupted `up` left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pulumi

from controller.backends.docker.api import SLOW, STREAM, Engine
from controller.backends.docker.objects import remove_container
from controller.backends.http_json import ResponseError
from controller.errors import EngineError
from infra.ending.drain import REPORT, DrainProgress, Ending, Patience, final_words, runnable_here
from infra.engine import connected_engine
from infra.hooks import value_if_known


class DockerEnd:
    """Ends the sandboxes of a stack's controller.

    `drains` is the body of a container that drains; None if commands run inside the controller's own container.
    """

    def __init__(
        self, name: str, ending: Ending, drains: pulumi.Output[Any] | None, patience: Patience | None = None
    ) -> None:
        self._app, self._drainer = f"{name}-app", f"{name}-drain"
        self._ending, self._drains = ending, drains
        self._patience = patience or Patience()
        self._done = False

    async def drain(self) -> None:
        """Stops the controller, so that nothing is claimed any more, and ends every sandbox.

        Raises EndRefusedError; then the controller runs again.
        """
        async with connected_engine() as engine:
            try:
                await _send(engine, "POST", f"containers/{self._app}/stop", timeout=SLOW)
                await self._drain(engine, await self._body())
            except BaseException:
                await _send(engine, "POST", f"containers/{self._app}/start", timeout=SLOW)
                raise

    async def drain_alone(self) -> None:
        """Drains after the controller is deleted. A container of it that is there was left by a killed `up`."""
        async with connected_engine() as engine:
            await remove_container(engine, self._app)
            if not self._done and self._drains is not None:
                await self._drain(engine, await value_if_known(self._drains))

    async def _body(self) -> Any:
        """The body of a container that drains, None for no drain. Raises EndRefusedError if it is not known."""
        if self._drains is None or self._ending.seconds == 0:
            return None
        body = await value_if_known(self._drains)
        if body is None:
            raise self._ending.forgotten()
        return body

    async def _drain(self, engine: Engine, body: Any) -> None:
        if body is not None and self._ending.seconds > 0:
            pulumi.log.info(self._ending.announcement)
            longest = self._ending.seconds + self._patience.margin
            try:
                async with asyncio.timeout(longest):
                    said, code = await self._run(engine, body, longest)
            except TimeoutError as error:
                raise self._ending.refused(f"the container {self._drainer} does not end") from error
            except EngineError as error:
                raise self._ending.refused(f"the container {self._drainer} failed ({error})") from error
            if code:
                raise self._ending.refused(final_words(said) or f"`drain` ended with {code}, and logged nothing")
        self._done = True

    async def _run(self, engine: Engine, body: Any, longest: float) -> tuple[list[str], int]:
        """Runs a container of that body; returns its reports and its exit code. It is gone afterwards."""
        name, said = self._drainer, list[str]()
        await remove_container(engine, name)
        try:
            await engine.json("POST", "containers/create", params={"name": name}, body=body)
            await engine.send("POST", f"containers/{name}/start", timeout=SLOW)
            with DrainProgress(f"container {name}", longest, self._patience) as progress:
                async for written in _lines(engine, name):
                    line = runnable_here(written, f"docker exec {self._app}")
                    progress.heard(line)
                    if line.startswith(REPORT):
                        pulumi.log.info(line)
                        said.append(line)
                ended = await engine.json("POST", f"containers/{name}/wait", timeout=SLOW)
            return said, int(ended["StatusCode"])
        finally:
            await remove_container(engine, name)


async def remove(*containers: str, networks: Sequence[str] = (), volumes: Sequence[str] = ()) -> None:
    """Removes these, as far as they are there."""
    async with connected_engine() as engine:
        for container in containers:
            await remove_container(engine, container)
        for path in [*(f"networks/{name}" for name in networks), *(f"volumes/{name}" for name in volumes)]:
            await _send(engine, "DELETE", path)


async def _send(engine: Engine, method: str, path: str, **more: Any) -> None:
    """Sends a request; nothing happens if its object is gone."""
    try:
        await engine.send(method, path, **more)
    except ResponseError as error:
        if error.status != 404:
            raise


async def _lines(engine: Engine, container: str) -> AsyncIterator[str]:
    """The lines of a container's log, until it ends."""
    rest, params = b"", {"follow": "1", "stdout": "1", "stderr": "1"}
    async with engine.request("GET", f"containers/{container}/logs", params=params, timeout=STREAM) as response:
        async for chunk in response.content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").strip()
