"""What a pretended cluster holds: objects, one counter of versions over all of them, and every change so far."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

Object = dict[str, Any]
Match = Callable[[Object], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object, in the words of the API."""

    resource: str
    kind: str
    group: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """As the API server's sentences call it."""
        return f"{self.resource}.{self.group}" if self.group else self.resource

    def details(self, name: str = "") -> Object:
        """The details of a Status about one of them."""
        found = {"name": name, "group": self.group, "kind": self.resource}
        return {key: value for key, value in found.items() if value}


JOBS, PODS, NAMESPACES = Kind("jobs", "Job", "batch"), Kind("pods", "Pod"), Kind("namespaces", "Namespace")


class Ref(NamedTuple):
    """Where an object is; a namespace's own namespace is empty."""

    kind: Kind
    namespace: str
    name: str


class Refusal(Exception):
    """The API server answers with an error."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        retry_after: int | None = None,
        token: str = "",
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.retry_after = code, reason, retry_after
        more = {"retryAfterSeconds": retry_after} if retry_after is not None else {}
        self.body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": token} if token else {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": {**(details or {}), **more},
            "code": code,
        }
        if not self.body["details"]:
            del self.body["details"]


def conflict(ref: Ref, why: str) -> Refusal:
    """The object is not as the request would have it."""
    message = f'Operation cannot be fulfilled on {ref.kind.qualified} "{ref.name}": {why}'
    return Refusal(409, "Conflict", message, ref.kind.details(ref.name))


@dataclass(frozen=True, slots=True)
class Event:
    """One change. Objects are never changed in place: each stays as it was at its version."""

    type: str
    ref: Ref
    version: int
    object: Object
    before: Object | None

    def seen(self, match: Match) -> tuple[str, Object] | None:
        """What a watch with that selector is told of it."""
        before = self.before is not None and match(self.before)
        if self.type != "DELETED" and match(self.object):
            return ("MODIFIED" if before else "ADDED"), self.object
        if not before or self.before is None:
            return None
        if self.type == "DELETED":
            return "DELETED", self.object
        return "DELETED", self.before | {"metadata": self.before["metadata"] | {"resourceVersion": str(self.version)}}


@dataclass
class News:
    """Wakes whoever waits for a condition, at whatever may have made it true."""

    _waiting: set[asyncio.Future[None]] = field(default_factory=set)

    def tell(self) -> None:
        """Something happened."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        """Waits until this is true. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not true():
                future = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
                await future


class Store:
    """All objects of a cluster. What is taken out must not be changed by its taker."""

    def __init__(self) -> None:
        self.version = 1
        self.oldest = 0  # changes up to this version are forgotten
        self.listeners: list[Callable[[Event], None]] = []
        self.news = News()
        self._history: list[Event] = []
        self._objects: dict[Ref, Object] = {}

    def find(self, ref: Ref) -> Object | None:
        """One object as it is now."""
        return self._objects.get(ref)

    def get(self, ref: Ref) -> Object:
        """One object as it is now. Raises Refusal where it is not there."""
        found = self._objects.get(ref)
        if found is None:
            message = f'{ref.kind.qualified} "{ref.name}" not found'
            raise Refusal(404, "NotFound", message, ref.kind.details(ref.name))
        return found

    def all(self, kind: Kind, namespace: str) -> list[Object]:
        """Every object of a kind, by name."""
        found = [ref for ref in self._objects if ref.kind is kind and ref.namespace == namespace]
        return [self._objects[ref] for ref in sorted(found, key=lambda ref: ref.name)]

    def refs(self) -> Sequence[Ref]:
        """Where all objects are."""
        return list(self._objects)

    def add(self, ref: Ref, found: Object) -> Object:
        """A new object."""
        return self._put("ADDED", ref, deepcopy(found), None)

    def change(self, ref: Ref, after: Object) -> Object:
        """Puts another state in the place of an object's own; the same state changes nothing."""
        before = self._objects[ref]
        return before if after == before else self._put("MODIFIED", ref, after, before)

    def remove(self, ref: Ref, last: Object | None = None) -> None:
        """Takes an object away; `last` is what it became by that."""
        before = self._objects[ref]
        self._put("DELETED", ref, deepcopy(last or before), before)

    def since(self, version: int) -> Sequence[Event]:
        """Every change after that version. Raises Refusal where some of them are forgotten."""
        if version < self.oldest:
            raise Refusal(410, "Expired", f"too old resource version: {version} ({self.oldest})")
        return self._history[bisect_right(self._history, version, key=lambda event: event.version) :]

    def compact(self) -> None:
        """Forgets every change so far."""
        self.version += 1  # so that even the newest version of a list is too old now
        self.oldest = self.version
        self._history.clear()

    def _put(self, type_: str, ref: Ref, found: Object, before: Object | None) -> Object:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        if type_ == "DELETED":
            del self._objects[ref]
        else:
            self._objects[ref] = found
        event = Event(type_, ref, self.version, found, before)
        self._history.append(event)
        for listener in list(self.listeners):
            listener(event)
        self.news.tell()
        return found


def now_text() -> str:
    """Now, as the API writes it."""
    return time_text(datetime.now(UTC))


def time_text(moment: datetime) -> str:
    """A time, as the API writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
