"""The watches of a pretended API server: told of each change, unless they are silenced or cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.fake_kubernetes.query import selector, shown
from tests.support.fake_kubernetes.store import Event, Kind, Match, Object, Refusal, Store

LONGEST = 3600.0  # seconds of a watch that names none


@dataclass(eq=False, slots=True)
class Watch:
    """One connection that is told of changes."""

    kind: Kind
    namespace: str
    match: Match
    slim: bool
    bookmarks: bool
    request: web.Request
    lines: list[Object] = field(default_factory=list)  # to be sent
    news: asyncio.Event = field(default_factory=asyncio.Event)
    loud: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, type_: str, found: Object) -> None:
        """Sends one line."""
        self.lines.append({"type": type_, "object": found})
        self.news.set()

    def take(self, event: Event) -> None:
        """Tells of a change, where it is one of its own."""
        if (event.ref.kind, event.ref.namespace) != (self.kind, self.namespace):
            return
        seen = event.seen(self.match)
        if seen is not None:
            self.say(seen[0], shown(seen[1], self.slim))

    def bookmark(self, version: int) -> None:
        """Tells up to which version all was told."""
        if self.bookmarks:
            found: Object = {"kind": self.kind.kind, "apiVersion": self.kind.api_version}
            found["metadata"] = {"resourceVersion": str(version)}
            self.say("BOOKMARK", shown(found, self.slim))

    def cut(self) -> None:
        """Breaks its connection."""
        if self.request.transport is not None:
            self.request.transport.abort()


class Watches:
    """All that are open. `gone_in_stream`: a version too old is told of by an event, else by the answer's status."""

    def __init__(self, store: Store, bookmark_seconds: float, gone_in_stream: bool) -> None:
        self.gone_in_stream, self.bookmark_seconds = gone_in_stream, bookmark_seconds
        self._store = store
        self._open: set[Watch] = set()
        store.listeners.append(self._tell)

    def open(self, resource: str | None = None) -> Sequence[Watch]:
        """Those of one resource, or all."""
        return [watch for watch in self._open if resource in (None, watch.kind.resource)]

    async def opened(self, resource: str, count: int = 1) -> None:
        """Waits until so many are open."""
        await self._store.news.until(lambda: len(self.open(resource)) >= count)

    def mute(self, resource: str | None = None) -> None:
        """From now on those that are open are sent nothing, not even their end; new ones are."""
        for watch in self.open(resource):
            watch.loud.clear()

    def unmute(self, resource: str | None = None) -> None:
        """Sends them all that they missed, and goes on."""
        for watch in self.open(resource):
            watch.loud.set()

    def cut(self, resource: str | None = None) -> None:
        """Breaks the connections of those that are open."""
        for watch in self.open(resource):
            watch.cut()

    def bookmark(self, resource: str | None = None) -> None:
        """Sends bookmarks to those that asked for them."""
        for watch in self.open(resource):
            watch.bookmark(self._store.version)

    def fail(self, code: int, reason: str, message: str, resource: str | None = None) -> None:
        """Ends those that are open with an ERROR event."""
        for watch in self.open(resource):
            watch.say("ERROR", Refusal(code, reason, message).body)

    async def serve(
        self, request: web.Request, kind: Kind, namespace: str, query: Mapping[str, str], slim: bool
    ) -> web.StreamResponse:
        """Answers one request until its time is up or its client is gone. Raises Refusal."""
        marks = query.get("allowWatchBookmarks") in ("1", "true")
        watch = Watch(kind, namespace, selector(query), slim, marks, request)
        watch.loud.set()
        try:
            self._begin(watch, query.get("resourceVersion", ""))
        except Refusal as refusal:
            if refusal.code != 410 or not self.gone_in_stream:
                raise
            watch.say("ERROR", refusal.body)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        self._open.add(watch)
        try:
            await response.prepare(request)
            self._store.news.tell()
            await self._stream(watch, response, float(query.get("timeoutSeconds") or LONGEST))
            await response.write_eof()
        except ConnectionError:
            pass
        finally:
            self._open.discard(watch)
            self._store.news.tell()
        return response

    def _begin(self, watch: Watch, version: str) -> None:
        """Tells what there is already, or what has changed since that version."""
        if version in ("", "0"):
            for found in self._store.all(watch.kind, watch.namespace):
                if watch.match(found):
                    watch.say("ADDED", shown(found, watch.slim))
            return
        if not version.isdigit():
            raise Refusal(400, "BadRequest", f"resourceVersion: Invalid value: {version}")
        for event in self._store.since(int(version)):
            watch.take(event)

    async def _stream(self, watch: Watch, response: web.StreamResponse, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end, mark = loop.time() + seconds, loop.time() + self.bookmark_seconds
        over = False
        while not over:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(end, mark)):
                    await watch.news.wait()
            watch.news.clear()
            if loop.time() >= min(end, mark):
                watch.bookmark(self._store.version)
                mark = loop.time() + self.bookmark_seconds
            over = loop.time() >= end
            await watch.loud.wait()
            lines, watch.lines = watch.lines, []
            over = over or any(line["type"] == "ERROR" for line in lines)
            if lines:
                await response.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def _tell(self, event: Event) -> None:
        for watch in self._open:
            watch.take(event)
