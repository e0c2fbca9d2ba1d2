"""Waits for containers, by asking their engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from controller.backends.docker.api import Engine
from controller.backends.docker.logs import ContainerLogTail
from controller.backends.http_json import ResponseError
from controller.errors import EngineError
from infra.engine import connected_engine
from infra.waiting.container_verdict import SeenContainer, ended_well, healthy
from infra.waiting.readiness import GONE, Unready, until_ready

LONGEST_SECONDS = 300.0
SILENT_SECONDS = 60.0  # for an engine to answer again
LINES = 6  # of a container's log
LOG_BYTES = 4096


class EngineWaits:
    """Waits for containers of the engine that the provider uses too. `subject` has a container's name and id."""

    async def healthy(self, subject: Mapping[str, Any]) -> None:
        """Waits until the container passes its health check. Raises NotReadyError."""
        async with connected_engine() as engine:
            before: list[int] = []

            def judged(seen: SeenContainer) -> Unready | None:
                before.append(seen.shown["RestartCount"])
                return healthy(replace(seen, restarts_before=before[0]))

            await self._until(engine, subject, judged)

    async def ended_well(self, subject: Mapping[str, Any]) -> None:
        """Waits until the container has ended without an error. Raises NotReadyError.

        A container that has failed is started once more: the cause of an earlier failure may be gone.
        """
        async with connected_engine() as engine:
            try:
                state = (await engine.json("GET", f"containers/{subject['id']}/json"))["State"]
                if state["Status"] == "exited" and state["ExitCode"]:
                    await engine.send("POST", f"containers/{subject['id']}/start")
            except EngineError:
                pass  # the next look reports it
            await self._until(engine, subject, ended_well)

    async def _until(
        self, engine: Engine, subject: Mapping[str, Any], judged: Callable[[SeenContainer], Unready | None]
    ) -> None:
        async def look() -> Unready | None:
            try:
                return judged(await _seen(engine, subject["id"]))
            except ResponseError as error:
                if error.status == 404:
                    return Unready("gone", GONE, patience=0)
                return Unready("no answer", str(error), patience=SILENT_SECONDS)
            except EngineError as error:
                return Unready("no answer", str(error), patience=SILENT_SECONDS)

        await until_ready(f"container {subject['name']}", look, LONGEST_SECONDS)


async def _seen(engine: Engine, container: str) -> SeenContainer:
    shown = await engine.json("GET", f"containers/{container}/json")
    tail = ContainerLogTail(LOG_BYTES)
    query = {"stdout": "1", "stderr": "1", "tail": str(LINES)}
    async with engine.request("GET", f"containers/{container}/logs", params=query) as answer:
        async for chunk in answer.content.iter_any():
            tail.feed(chunk)
    return SeenContainer(shown, tail.output().tail.decode(errors="replace").splitlines())
