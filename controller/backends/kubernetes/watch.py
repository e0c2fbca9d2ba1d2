"""Lists and watches this installation's Jobs and pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp

from controller.backends.http_json import Json, ResponseError
from controller.backends.kubernetes.api import JSON, Api
from controller.errors import EngineError, TransientEngineError

WATCH_SECONDS = 300  # the server ends a watch after this; the next one continues from there
SILENCE_SECONDS = 90.0  # a bookmark comes each minute, so a watch without any event for this long is dead
STREAM = aiohttp.ClientTimeout(total=None, sock_connect=15)
REST_SECONDS = 0.5  # before a watch that ended at once is repeated
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"


@dataclass(frozen=True, slots=True)
class Event:
    """An object that was added, changed or deleted."""

    kind: str  # jobs or pods
    gone: bool
    object: Json


class Feed:
    """Lists and watches one kind of object: `jobs`, of which only the metadata is read, or `pods`."""

    def __init__(self, api: Api, kind: str, selector: str) -> None:
        self._api, self._kind, self._selector = api, kind, selector
        self._version = ""  # up to which every change is known
        slim = kind == "jobs"
        self._accept, self._accept_list = (METADATA, METADATA_LIST) if slim else (JSON, JSON)

    async def pages(self) -> AsyncIterator[Sequence[Json]]:
        """Every object, in pages; `follow` begins at the version of the first whole list."""
        async for items, version in self._api.pages(self._kind, {"labelSelector": self._selector}, self._accept_list):
            self._version = self._version or version
            yield items

    async def follow(self, events: asyncio.Queue[Event | None]) -> None:
        """Puts each change into the queue; returns when changes may have been missed and a new list is needed."""
        whole = True
        while whole:
            began = time.monotonic()
            try:
                whole = await self._watch(events)
            except ResponseError as error:
                if error.status != 410:
                    raise
                whole = False
            if time.monotonic() - began < REST_SECONDS:
                await asyncio.sleep(REST_SECONDS)

    async def _watch(self, events: asyncio.Queue[Event | None]) -> bool:
        """Watches until the server ends the watch; false if changes may have been missed."""
        query = {
            "watch": "1",
            "labelSelector": self._selector,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with self._api.request("GET", self._kind, query=query, accept=self._accept, timeout=STREAM) as response:
            lines = self._api.lines(response)
            while (said := await lines.read(SILENCE_SECONDS)) is not None:
                if not said:
                    return False
                for each in said:
                    if each["type"] == "ERROR":
                        return False
                    self._version = each["object"]["metadata"]["resourceVersion"]
                    if each["type"] != "BOOKMARK":
                        events.put_nowait(Event(self._kind, each["type"] == "DELETED", each["object"]))
        return True


class Events:
    """Merges the changes of several feeds."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._tasks = [asyncio.create_task(feed.follow(self._queue)) for feed in feeds]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._queue.put_nowait(None))  # wakes `next`

    async def next(self, seconds: float) -> Event | None:
        """The next change, or None after so many seconds, or when a feed has ended: see `whole`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            return None

    @property
    def whole(self) -> bool:
        """Whether no change was missed. Raises EngineError if a feed failed."""
        for task in self._tasks:
            if task.done() and (error := task.exception()) is not None:
                raise error if isinstance(error, EngineError) else TransientEngineError(f"a watch broke off: {error!r}")
        return not any(task.done() for task in self._tasks)

    async def stop(self) -> None:
        """Cancels all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
