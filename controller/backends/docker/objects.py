"""Containers of one installation on a Docker engine: found, created and removed one by one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection

from controller.backends.docker import container
from controller.backends.docker.api import SLOW, Engine
from controller.backends.docker.volumes import Volumes, named
from controller.backends.guest.layout import STATE_DIR, STATE_FILE
from controller.backends.http_json import Json, ResponseError
from controller.backends.labels import docker_filters
from controller.protocol.model import Key

REMOVAL_SECONDS = 60.0
REMOVAL_POLL_SECONDS = 0.1
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


class Containers:
    """What the verbs do to single containers. No other installation's is removed."""

    def __init__(self, engine: Engine, volumes: Volumes, installation: str) -> None:
        self._engine, self._volumes, self.installation = engine, volumes, installation

    def key(self, inspect: Json) -> Key | None:
        """The attempt that an inspected container belongs to, or None if it is not this installation's."""
        return container.key_of(inspect["Config"]["Labels"], inspect["Name"], self.installation)

    def key_of_entry(self, entry: Json) -> Key | None:
        """The same of an entry of a list."""
        names = entry.get("Names") or [""]
        return container.key_of(entry.get("Labels"), names[0], self.installation)

    async def list(self, key: Key | None = None) -> list[Json]:
        """Every container of this installation, or of one attempt, as the engine lists them."""
        params = {"all": "1", "filters": docker_filters(self.installation, key)}
        entries: list[Json] = await self._engine.json("GET", "containers/json", params=params)
        return entries

    async def inspect(self, name: str) -> Json | None:
        """What the engine knows of a container by its name or id, or None if it does not exist."""
        return await self._engine.find(f"containers/{name}/json")

    async def run(self, key: Key, run_uid: str) -> Json | None:
        """The inspection of that run, or None if this installation has no such run."""
        inspect = await self.inspect(run_uid) if CONTAINER_ID.fullmatch(run_uid) else None
        return inspect if inspect is not None and inspect["Id"] == run_uid and self.key(inspect) == key else None

    async def permit_start(self, run_uid: str) -> None:
        """Writes the empty state file, once: in the place of a written one it would permit another start."""
        await self._engine.send(
            "PUT",
            f"containers/{run_uid}/archive",
            params={"path": STATE_DIR},
            data=_once(container.empty_state()),
            timeout=SLOW,
        )

    async def has_state(self, run_uid: str) -> bool:
        """Whether the container's state file exists."""
        try:
            await self._engine.send("HEAD", f"containers/{run_uid}/archive", params={"path": STATE_FILE})
        except ResponseError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def state(self, run_uid: str) -> str | None:
        """The beginning of an exited container's state file, or None if it has none."""
        where, params = f"containers/{run_uid}/archive", {"path": STATE_FILE}
        try:
            async with self._engine.request("GET", where, params=params) as response:
                archive = b""
                async for chunk in response.content.iter_any():
                    archive += chunk
                    if len(archive) >= container.ARCHIVE_BYTES:
                        break
        except ResponseError as error:
            if error.status == 404:
                return None
            raise
        return container.state_text(archive[: container.ARCHIVE_BYTES])

    async def remove(self, found: Json) -> None:
        """Ends and removes a container, of a list or an inspection, with its volumes. Returns once it is gone."""
        await remove_container(self._engine, found["Id"])
        await self._volumes.remove(named(found.get("Mounts")))

    async def remove_unstarted(self, run_uid: str, volumes: Collection[str] = ()) -> None:
        """Removes a container that has not started; one that was started meanwhile stays, and the engine says so."""
        await self._engine.send("DELETE", f"containers/{run_uid}", params={"v": "1"}, timeout=SLOW)
        await self._volumes.remove(volumes)


async def remove_container(engine: Engine, name: str) -> None:
    """Ends and removes a container by its name or id, with its anonymous volumes. Returns once it is gone.

    Raises EngineError, also if another removal of it does not come to its end.
    """
    params, deadline = {"force": "1", "v": "1"}, time.monotonic() + REMOVAL_SECONDS
    while True:
        try:
            return await engine.send("DELETE", f"containers/{name}", params=params, timeout=SLOW)
        except ResponseError as error:
            if error.status == 404:
                return None
            if error.status != 409 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(REMOVAL_POLL_SECONDS)  # another removal is under way


async def _once(data: bytes) -> AsyncIterator[bytes]:
    """A request's body that the HTTP client cannot send a second time by itself, as it does with plain bytes."""
    yield data
