"""Runs attempts as containers on a Docker engine: only sends and reads; `container` knows what it means."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any
from uuid import UUID

from controller.backends import labels
from controller.backends.docker import container
from controller.backends.docker import volumes as docker_volumes
from controller.backends.docker.api import SLOW, STREAM, WHO, Engine, EngineError
from controller.backends.docker.container import create_body
from controller.backends.docker.images import Images
from controller.backends.docker.logs import ContainerLogTail
from controller.backends.docker.marks import DockerMarks
from controller.backends.docker.volumes import Volumes
from controller.backends.json_lines import Json, Lines
from controller.errors import (
    BackendClosedError,
    BackendUnavailableError,
    ImagePullingError,
    RequestRejectedError,
    RunNotFoundError,
    TransientEngineError,
)
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output, Phase, Reason

RELIST_SECONDS = 10.0
LOOKS_AT_ONCE = 8
REMOVAL_SECONDS = 60.0
REMOVAL_POLL_SECONDS = 0.1
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
NEVER_STARTS = re.compile(  # the engine's words for what is the image's own fault, and stays
    r"OCI runtime.*(no such file|not found|exec format error|permission denied|not a directory)", re.DOTALL
)


class DockerBackend:
    """Containers on one engine. `image` is for launches that name none; `url` None: DOCKER_HOST, or its socket."""

    at_once, launching = 8, 16

    def __init__(self, image: str, url: str | None = None, list_seconds: float = RELIST_SECONDS) -> None:
        self._image, self._list_seconds = image, list_seconds
        self._engine = Engine(url)
        self._images, self._volumes = Images(self._engine), Volumes(self._engine)
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._installation = self._id = ""  # these and the next are set by `open`
        self._node: str | None = None
        self.marks: DockerMarks | None = None

    async def open(self, installation: UUID) -> str:
        info = await self._engine.info()
        if missing := container.cannot_limit(info):
            raise BackendUnavailableError(
                f"the Docker engine cannot limit {missing}: delegate these cgroup controllers to it"
            )
        self._installation, self._id, self._node = str(installation), info["ID"], info.get("Name")
        self.marks = DockerMarks(self._engine, self._installation, info.get("DockerRootDir") or "/var/lib/docker")
        return f"docker:{self._id}"

    async def ping(self) -> None:
        if not self._installation:
            raise BackendClosedError
        if (await self._engine.info())["ID"] != self._id:
            raise BackendUnavailableError("another Docker engine answers than at the start: restart the controller")

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        if look and (found := await self._adopt(launch.key)) is not None:
            return found
        try:
            return await self._make(launch)
        except ImagePullingError:
            if not look and (found := await self._adopt(launch.key)) is not None:
                return found  # another controller's, from when the image was there
            raise

    async def release(self, key: Key, run_uid: str) -> None:
        inspect = await self._ours(key, run_uid)
        if inspect is None or container.goes_unstarted(inspect):
            raise RunNotFoundError(f"the Docker engine has no container {run_uid} that it could start")
        if inspect["State"]["Status"] != "created":
            return  # were it started at this very moment by another: its state file lets the command start once
        try:
            await self._engine.send("POST", f"containers/{run_uid}/start", timeout=SLOW)
        except EngineError as error:
            if error.status in (404, 409):  # 409: it is marked for removal, and so is never started
                left = await self._inspect(run_uid)
                if left is None or container.goes_unstarted(left):
                    raise RunNotFoundError(error.words) from error
            if NEVER_STARTS.search(error.words):
                raise RequestRejectedError(Reason.START_FAILED, error.words) from error
            raise

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        known: dict[str, ObservedRun] = {}  # what needs no second look
        wanted = labels.filters(self._installation, type=["container"], event=["start", "die", "destroy"])
        async with self._engine.request("GET", "events", params={"filters": wanted}, timeout=STREAM) as response:
            events = Lines(response, WHO)
            while True:
                yield await self._listing(known)
                relist_at = time.monotonic() + self._list_seconds
                while (left := relist_at - time.monotonic()) > 0:
                    batch = await events.read(left)
                    if batch is None:
                        raise TransientEngineError("the Docker engine ended its stream of events")
                    for seen in await self._changes(batch, known):
                        yield seen

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        if await self._ours(key, run_uid) is None:
            raise RunNotFoundError(f"the Docker engine has no container {run_uid}")
        tail = ContainerLogTail(limit)
        params = {"stdout": "1", "stderr": "1"}
        async with self._engine.request("GET", f"containers/{run_uid}/logs", params=params, timeout=SLOW) as response:
            async for chunk in response.content.iter_any():
                tail.feed(chunk)
        return tail.output()

    async def kill(self, key: Key, run_uid: str) -> None:
        if await self._ours(key, run_uid) is None:
            return
        try:
            await self._engine.send("POST", f"containers/{run_uid}/kill", params={"signal": "KILL"})
        except EngineError as error:
            if error.status not in (404, 409):  # gone, or not running
                raise

    async def delete(self, key: Key, run_uid: str | None) -> None:
        if run_uid is None:
            runs = [entry for entry in await self._list(key) if self._key(entry) == key]
        else:
            inspect = await self._ours(key, run_uid)
            runs = [inspect] if inspect is not None else []
        await asyncio.gather(*(self._remove(run["Id"], docker_volumes.named(run.get("Mounts"))) for run in runs))

    async def close(self) -> None:
        await self._images.close()
        await self._engine.close()

    async def _adopt(self, key: Key) -> ObservedRun | None:
        """The attempt's container, if there is one that is whole."""
        inspect = await self._inspect(key.name)
        if inspect is None:
            return None
        run_uid = inspect["Id"]
        if container.key_of(inspect["Config"]["Labels"], inspect["Name"], self._installation) != key:
            words = f"a container {key.name} that is not this installation's is in the way: remove or rename it"
            raise RequestRejectedError(Reason.NAME_CONFLICT, words)
        if inspect["State"]["Status"] == "created" and not await self._has_state(run_uid):
            await self._remove_inert(run_uid, docker_volumes.named(inspect.get("Mounts")))
            return None  # its maker went away halfway; were it running, the engine would not have removed it
        seen = await self._seen(key, inspect)
        if seen is None:
            raise TransientEngineError(f"the container {key.name} is being removed")
        return seen

    async def _make(self, launch: Launch) -> ObservedRun:
        key, image = launch.key, self._image if launch.image is None else launch.image
        found = await self._images.find(image, launch)
        paths = container.declared((found.get("Config") or {}).get("Volumes"))
        kept = self._volumes.known(found["Id"], paths)
        made = await self._created(launch, image, paths, kept or ())
        if kept is None and not isinstance(made, ObservedRun):
            kept = await self._volumes.look(found["Id"], made, paths)
            if kept:
                await self._remove_inert(made, ())
                made = await self._created(launch, image, paths, kept)
        if isinstance(made, ObservedRun):
            return made
        # Only here, only once, and never sent again: an empty file in the place of a written one would be a new start.
        await self._engine.send(
            "PUT",
            f"containers/{made}/archive",
            params={"path": container.STATE_DIR},
            data=_once(container.empty_state()),
            timeout=SLOW,
        )
        return ObservedRun(key, made, Phase.INERT, node=self._node, image_digest=found["Id"])

    async def _created(self, launch: Launch, image: str, paths: list[str], kept: Collection[str]) -> str | ObservedRun:
        """A new container's id, or the attempt's run where another controller was faster."""
        body, params = create_body(launch, image, paths, self._installation, kept), {"name": launch.key.name}
        try:
            made = await self._engine.json("POST", "containers/create", params=params, body=body, timeout=SLOW)
        except EngineError as error:
            if error.status == 400:
                raise RequestRejectedError(Reason.INVALID_REQUEST, error.words) from error
            if error.status == 409 and (adopted := await self._adopt(launch.key)) is not None:
                return adopted
            raise
        return str(made["Id"])

    async def _has_state(self, run_uid: str) -> bool:
        try:
            await self._engine.send("HEAD", f"containers/{run_uid}/archive", params={"path": container.STATE_FILE})
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _inspect(self, name: str) -> Json | None:
        try:
            found: Json = await self._engine.json("GET", f"containers/{name}/json")
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def _ours(self, key: Key, run_uid: str) -> Json | None:
        """The inspection of that run, None where there is none of this installation."""
        inspect = await self._inspect(run_uid) if CONTAINER_ID.fullmatch(run_uid) else None
        if inspect is None or inspect["Id"] != run_uid:
            return None
        found = container.key_of(inspect["Config"]["Labels"], inspect["Name"], self._installation)
        return inspect if found == key else None

    async def _remove(self, run_uid: str, volumes: Collection[str]) -> None:
        await self._remove_container(run_uid)
        await self._volumes.remove(volumes)

    async def _remove_inert(self, run_uid: str, volumes: Collection[str]) -> None:
        """Without force: one that was started meanwhile stays."""
        await self._engine.send("DELETE", f"containers/{run_uid}", params={"v": "1"}, timeout=SLOW)
        await self._volumes.remove(volumes)

    async def _remove_container(self, run_uid: str) -> None:
        deadline = time.monotonic() + REMOVAL_SECONDS
        while True:
            try:
                return await self._engine.send(
                    "DELETE", f"containers/{run_uid}", params={"force": "1", "v": "1"}, timeout=SLOW
                )
            except EngineError as error:
                if error.status == 404:
                    return None
                if error.status != 409 or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(REMOVAL_POLL_SECONDS)  # another removal is under way

    async def _list(self, key: Key | None = None) -> list[Json]:
        params = {"all": "1", "filters": labels.filters(self._installation, key)}
        entries: list[Json] = await self._engine.json("GET", "containers/json", params=params)
        return entries

    def _key(self, entry: Json) -> Key | None:
        names = entry.get("Names") or [""]
        return container.key_of(entry.get("Labels"), names[0], self._installation)

    async def _listing(self, known: dict[str, ObservedRun]) -> Listing:
        begun = time.monotonic()
        entries = await self._list()
        runs = await asyncio.gather(*(self._entry(entry, known) for entry in entries))
        for gone in known.keys() - {entry["Id"] for entry in entries}:
            del known[gone]
        await self._volumes.sweep(self._installation)
        return Listing(tuple(run for run in runs if run is not None), begun)

    async def _entry(self, entry: Json, known: dict[str, ObservedRun]) -> ObservedRun | None:
        key, run_uid, phase = self._key(entry), entry["Id"], container.PHASES.get(entry["State"])
        if key is None or phase is None:
            return None
        old = known.get(run_uid)
        if old is not None and (old.phase is phase or old.phase is not Phase.RUNNING):
            return old
        run = ObservedRun(key, run_uid, phase, node=self._node, image_digest=entry.get("ImageID"))
        if phase is Phase.INERT:
            return run
        try:
            return await self._look(key, run_uid, known)
        except TransientEngineError:  # it is there, and until the engine says how it ended it has not ended
            return replace(run, phase=Phase.RUNNING)

    async def _changes(self, events: list[Any], known: dict[str, ObservedRun]) -> list[ObservedRun]:
        """What became of the containers of some events; what cannot be seen now is in the next listing."""
        looks: dict[str, Key] = {}
        gone: dict[str, Key] = {}
        for event in events:
            attributes, run_uid = event["Actor"]["Attributes"], event["Actor"]["ID"]
            key = container.key_of(attributes, attributes.get("name", ""), self._installation)
            if key is None:
                continue
            if event["Action"] == "destroy":
                gone[run_uid] = key
            elif run_uid not in known or (known[run_uid].phase is Phase.RUNNING and event["Action"] != "start"):
                looks[run_uid] = key
        found = await asyncio.gather(*(self._try_look(looks[each], each, known) for each in looks.keys() - gone.keys()))
        seen = [run for run in found if run is not None]
        return [*seen, *(ObservedRun(key, run_uid, Phase.GONE, node=self._node) for run_uid, key in gone.items())]

    async def _try_look(self, key: Key, run_uid: str, known: dict[str, ObservedRun]) -> ObservedRun | None:
        try:
            return await self._look(key, run_uid, known)
        except TransientEngineError:
            return None

    async def _look(self, key: Key, run_uid: str, known: dict[str, ObservedRun]) -> ObservedRun | None:
        async with self._looks:
            inspect = await self._inspect(run_uid)
            run = await self._seen(key, inspect) if inspect is not None else None
        if run is not None and run.phase is not Phase.INERT:
            known[run_uid] = run
        return run

    async def _seen(self, key: Key, inspect: Json) -> ObservedRun | None:
        if inspect["State"]["Status"] != "exited":
            return container.observed_run(key, inspect, None, self._node)
        state = await self._state(inspect["Id"])
        if state is None:  # no file, or nothing any more that could have one: look which
            again = await self._inspect(inspect["Id"])
            return container.observed_run(key, again, None, self._node) if again is not None else None
        return container.observed_run(key, inspect, state, self._node)

    async def _state(self, run_uid: str) -> str | None:
        """The state file of an exited container, None where there is none."""
        try:
            async with self._engine.request(
                "GET", f"containers/{run_uid}/archive", params={"path": container.STATE_FILE}
            ) as response:
                archive = b""
                async for chunk in response.content.iter_any():
                    archive += chunk
                    if len(archive) >= container.ARCHIVE_BYTES:
                        break
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return container.state_text(archive[: container.ARCHIVE_BYTES])


async def _once(data: bytes) -> AsyncIterator[bytes]:
    """A request's body that the HTTP client cannot send a second time by itself, as it does with plain bytes."""
    yield data
