"""Runs attempts as containers on a Docker engine: the protocol's verbs.

Beside this file, `container` is what is asked and what the answers mean, which is pure; `api` sends, `objects` changes
single containers, `images` and `pulls` bring images, `volumes` keeps what an image has there, `logs` reads output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any
from uuid import UUID

from controller.backends.docker import container
from controller.backends.docker.api import SLOW, STREAM, Engine
from controller.backends.docker.errors import creation_error, start_error
from controller.backends.docker.images import Images
from controller.backends.docker.logs import ContainerLogTail
from controller.backends.docker.marks import DockerMarks
from controller.backends.docker.objects import Containers
from controller.backends.docker.volumes import Volumes, named
from controller.backends.http_json import Json, ResponseError, transient_errors, verb
from controller.backends.labels import docker_filters
from controller.errors import (
    BackendClosedError,
    BackendUnavailableError,
    EngineError,
    ImagePullingError,
    RequestRejectedError,
    RunNotFoundError,
    TransientEngineError,
)
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output, Phase, Reason

RELIST_SECONDS = 10.0
LOOKS_AT_ONCE = 8


class DockerBackend:
    """Containers on one engine. `image` is for launches that name none.

    `url` None: DOCKER_HOST; without it the engine of the current Docker context, or the usual socket.
    """

    at_once, launching = 8, 16

    def __init__(self, image: str, url: str | None = None, list_seconds: float = RELIST_SECONDS) -> None:
        self._image, self._list_seconds = image, list_seconds
        self._engine = Engine(url)
        self._images, self._volumes = Images(self._engine), Volumes(self._engine)
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._opened: Containers | None = None
        self._id = ""
        self._node: str | None = None
        self.marks: DockerMarks | None = None

    async def open(self, installation: UUID) -> str:
        info = await self._engine.info()
        if missing := container.cannot_limit(info):
            raise BackendUnavailableError(
                f"the Docker engine cannot limit {missing}: delegate these cgroup controllers to it"
            )
        self._opened = Containers(self._engine, self._volumes, str(installation))
        self._id, self._node = info["ID"], info.get("Name")
        root = info.get("DockerRootDir") or "/var/lib/docker"
        self.marks = DockerMarks(self._engine, str(installation), root)
        return f"docker:{self._id}"

    async def ping(self) -> None:
        if self._opened is None:
            raise BackendClosedError
        if (await self._engine.info())["ID"] != self._id:
            raise BackendUnavailableError("another Docker engine answers than at the start: restart the controller")

    @verb
    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        if look and (found := await self._find_existing(launch.key)) is not None:
            return found
        try:
            return await self._create(launch)
        except ImagePullingError:
            if not look and (found := await self._find_existing(launch.key)) is not None:
                return found  # another controller's, from when the image was there
            raise

    @verb
    async def release(self, key: Key, run_uid: str) -> None:
        inspect = await self._containers.run(key, run_uid)
        if inspect is None or container.is_removed_unstarted(inspect):
            raise RunNotFoundError(f"the Docker engine has no container {run_uid} that it could start")
        if inspect["State"]["Status"] != "created":
            return  # were it started at this very moment by another: its state file lets the command start once
        try:
            await self._engine.send("POST", f"containers/{run_uid}/start", timeout=SLOW)
        except ResponseError as error:
            if error.status in (404, 409):  # 409: it is marked for removal, and so is never started
                left = await self._containers.inspect(run_uid)
                if left is None or container.is_removed_unstarted(left):
                    raise RunNotFoundError(error.message) from error
            raise start_error(error) from error

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        known: dict[str, ObservedRun] = {}  # what needs no second look
        filters = docker_filters(self._containers.installation, type=["container"], event=["start", "die", "destroy"])
        with transient_errors():
            async with self._engine.request("GET", "events", params={"filters": filters}, timeout=STREAM) as response:
                events = self._engine.lines(response)
                while True:
                    yield await self._listing(known)
                    relist_at = time.monotonic() + self._list_seconds
                    while (left := relist_at - time.monotonic()) > 0:
                        batch = await events.read(left)
                        if batch is None:
                            raise TransientEngineError("the Docker engine ended its stream of events")
                        for run in await self._changes(batch, known):
                            yield run

    @verb
    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        if await self._containers.run(key, run_uid) is None:
            raise RunNotFoundError(f"the Docker engine has no container {run_uid}")
        tail = ContainerLogTail(limit)
        params = {"stdout": "1", "stderr": "1"}
        async with self._engine.request("GET", f"containers/{run_uid}/logs", params=params, timeout=SLOW) as response:
            async for chunk in response.content.iter_any():
                tail.feed(chunk)
        return tail.output()

    @verb
    async def kill(self, key: Key, run_uid: str) -> None:
        if await self._containers.run(key, run_uid) is None:
            return
        try:
            await self._engine.send("POST", f"containers/{run_uid}/kill", params={"signal": "KILL"})
        except ResponseError as error:
            if error.status not in (404, 409):  # gone, or not running
                raise

    @verb
    async def delete(self, key: Key, run_uid: str | None) -> None:
        if run_uid is None:
            runs = [entry for entry in await self._containers.list(key) if self._containers.key_of_entry(entry) == key]
        else:
            inspect = await self._containers.run(key, run_uid)
            runs = [inspect] if inspect is not None else []
        await asyncio.gather(*(self._containers.remove(run) for run in runs))

    async def close(self) -> None:
        self._opened = None
        await self._images.close()
        await self._engine.close()

    @property
    def _containers(self) -> Containers:
        if self._opened is None:
            raise BackendClosedError
        return self._opened

    async def _find_existing(self, key: Key) -> ObservedRun | None:
        """The attempt's container, if there is one that is whole."""
        inspect = await self._containers.inspect(key.name)
        if inspect is None:
            return None
        run_uid = inspect["Id"]
        if self._containers.key(inspect) != key:
            message = f"a container {key.name} that is not this installation's is in the way: remove or rename it"
            raise RequestRejectedError(Reason.NAME_CONFLICT, message)
        if inspect["State"]["Status"] == "created" and not await self._containers.has_state(run_uid):
            await self._containers.remove_unstarted(run_uid, named(inspect.get("Mounts")))
            return None  # its maker went away halfway; were it running, the engine would not have removed it
        run = await self._observed(key, inspect)
        if run is None:
            raise TransientEngineError(f"the container {key.name} is being removed")
        return run

    async def _create(self, launch: Launch) -> ObservedRun:
        key, image = launch.key, self._image if launch.image is None else launch.image
        found = await self._images.find(image, launch)
        paths = container.declared((found.get("Config") or {}).get("Volumes"))
        kept = self._volumes.known(found["Id"], paths)
        created = await self._created(launch, image, paths, kept or ())
        if kept is None and not isinstance(created, ObservedRun):
            kept = await self._volumes.look(found["Id"], created, paths)
            if kept:
                await self._containers.remove_unstarted(created)
                created = await self._created(launch, image, paths, kept)
        if isinstance(created, ObservedRun):
            return created
        await self._containers.permit_start(created)  # here alone
        return ObservedRun(key, created, Phase.INERT, node=self._node, image_digest=found["Id"])

    async def _created(self, launch: Launch, image: str, paths: list[str], kept: Collection[str]) -> str | ObservedRun:
        """A new container's id, or the attempt's run if another controller was faster."""
        body = container.create_body(launch, image, paths, self._containers.installation, kept)
        params = {"name": launch.key.name}
        try:
            created = await self._engine.json("POST", "containers/create", params=params, body=body, timeout=SLOW)
        except ResponseError as error:
            if error.status == 409 and (found := await self._find_existing(launch.key)) is not None:
                return found
            raise creation_error(error) from error
        return str(created["Id"])

    async def _listing(self, known: dict[str, ObservedRun]) -> Listing:
        begun = time.monotonic()
        entries = await self._containers.list()
        runs = await asyncio.gather(*(self._entry(entry, known) for entry in entries))
        for gone in known.keys() - {entry["Id"] for entry in entries}:
            del known[gone]
        await self._volumes.sweep(self._containers.installation)
        return Listing(tuple(run for run in runs if run is not None), begun)

    async def _entry(self, entry: Json, known: dict[str, ObservedRun]) -> ObservedRun | None:
        key, run_uid, phase = self._containers.key_of_entry(entry), entry["Id"], container.PHASES.get(entry["State"])
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
        except EngineError:  # it is there, and until the engine says how it ended it has not ended
            return replace(run, phase=Phase.RUNNING)

    async def _changes(self, events: list[Any], known: dict[str, ObservedRun]) -> list[ObservedRun]:
        """What became of the containers of some events; what cannot be seen now is in the next listing."""
        looks: dict[str, Key] = {}
        gone: dict[str, Key] = {}
        for event in events:
            attributes, run_uid = event["Actor"]["Attributes"], event["Actor"]["ID"]
            key = container.key_of(attributes, attributes.get("name", ""), self._containers.installation)
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
        except EngineError:
            return None

    async def _look(self, key: Key, run_uid: str, known: dict[str, ObservedRun]) -> ObservedRun | None:
        async with self._looks:
            inspect = await self._containers.inspect(run_uid)
            run = await self._observed(key, inspect) if inspect is not None else None
        if run is not None and run.phase is not Phase.INERT:
            known[run_uid] = run
        return run

    async def _observed(self, key: Key, inspect: Json) -> ObservedRun | None:
        if inspect["State"]["Status"] != "exited":
            return container.observed_run(key, inspect, None, self._node)
        state = await self._containers.state(inspect["Id"])
        if state is None:  # no file, or nothing any more that could have one: look which
            again = await self._containers.inspect(inspect["Id"])
            return container.observed_run(key, again, None, self._node) if again is not None else None
        return container.observed_run(key, inspect, state, self._node)
