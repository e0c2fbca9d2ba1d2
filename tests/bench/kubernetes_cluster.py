"""A bare client of one namespace, and a watcher that notes when each Job and its pod came how far."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_kube_config

from controller.backends.kubernetes.manifest import RECORDED

JOB_NAME = "batch.kubernetes.io/job-name"
SLIM = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
FOREVER = aiohttp.ClientTimeout(total=None)
WATCH_SECONDS = 7200  # longer than any measurement
Json = Mapping[str, Any]


class Plain:
    """Requests with nothing around them, sent under the controller's own login."""

    def __init__(self, paths: Mapping[str, str], session: aiohttp.ClientSession) -> None:
        self._paths, self._session = paths, session

    async def post(self, job: Json) -> None:
        """Creates one Job."""
        async with self._session.post(self._paths["jobs"], json=job) as response:
            await response.read()
            response.raise_for_status()

    async def delete(self, job: str) -> None:
        """Deletes one Job with its pods, where it is still there."""
        body = {"propagationPolicy": "Background"}
        async with self._session.delete(f"{self._paths['jobs']}/{job}", json=body) as response:
            if response.status != 404:
                response.raise_for_status()

    async def version(self, kind: str) -> str:
        """Where a watch may begin now."""
        async with self._session.get(self._paths[kind], params={"limit": "1"}) as response:
            response.raise_for_status()
            return str((await response.json())["metadata"]["resourceVersion"])

    async def watch(self, kind: str, version: str) -> AsyncIterator[Sequence[Json]]:
        """Every change from there on, as many at a time as have come."""
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        headers, rest = {"Accept": SLIM if kind == "jobs" else "application/json"}, b""
        async with self._session.get(self._paths[kind], params=query, headers=headers, timeout=FOREVER) as response:
            response.raise_for_status()
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                yield [json.loads(line) for line in lines]


@asynccontextmanager
async def plain(kubeconfig: str, paths: Mapping[str, str]) -> AsyncIterator[Plain]:
    """A client with that login; `paths` says where each kind of object is found."""
    configuration = Configuration()
    await load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
    connector = aiohttp.TCPConnector(limit=200, ssl=RESTClientObject(configuration).ssl_context)
    headers = {"Authorization": configuration.api_key["BearerToken"]}
    async with aiohttp.ClientSession(
        configuration.host, connector=connector, headers=headers, read_bufsize=1 << 21
    ) as session:
        yield Plain(paths, session)


@dataclass
class Sight:
    """One Job and its pods: when each thing was first seen, in monotonic seconds, and how many there were."""

    created: float | None = None
    pod: float | None = None
    running: float | None = None  # its container
    ended: float | None = None
    recorded: float | None = None  # the controller has written its outcome down
    jobs: set[str] = field(default_factory=set)  # uids
    pods: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # uids of what is there now


class Watcher:
    """What the cluster told of a namespace."""

    def __init__(self) -> None:
        self.sights: defaultdict[str, Sight] = defaultdict(Sight)  # by the Job's name
        self.live = self.most_live = 0  # containers running
        self._news = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def until(self, what: str, true: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for a condition on what was seen."""

        def settled() -> bool:
            return true() or any(task.done() for task in self._tasks)

        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(settled)
        except TimeoutError:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}") from None
        if not true():
            raise RuntimeError(f"a watch ended: {[task for task in self._tasks if task.done()]}")

    def times(self, what: str) -> list[float]:
        """When the Jobs came so far, in order: `created`, `pod`, `running` and so on."""
        return sorted(at for sight in self.sights.values() if (at := getattr(sight, what)) is not None)

    async def _follow(self, client: Plain, kind: str, version: str) -> None:
        try:
            while True:  # a server ends the watch of a client that it finds too slow
                async for events in client.watch(kind, version):
                    at = time.monotonic()
                    async with self._news:
                        for event in events:
                            (self._job if kind == "jobs" else self._pod)(event, at)
                            version = event["object"]["metadata"]["resourceVersion"]
                        self._news.notify_all()
        finally:
            async with self._news:
                self._news.notify_all()

    def _job(self, event: Json, at: float) -> None:
        meta = event["object"]["metadata"]
        sight = self.sights[meta["name"]]
        self._note(sight, sight.jobs, event)
        if sight.created is None:
            sight.created = at
        if sight.recorded is None and RECORDED in (meta.get("annotations") or {}):
            sight.recorded = at

    def _pod(self, event: Json, at: float) -> None:
        meta, status = event["object"]["metadata"], event["object"]["status"]
        sight = self.sights[meta["labels"][JOB_NAME]]
        self._note(sight, sight.pods, event)
        if sight.pod is None:
            sight.pod = at
        states = [one["state"] for one in status.get("containerStatuses") or ()]
        if sight.running is None and any("running" in state for state in states):
            sight.running = at
            self.live += 1
            self.most_live = max(self.most_live, self.live)
        if sight.ended is None and status.get("phase") in ("Succeeded", "Failed"):
            sight.ended = at
            self.live -= sight.running is not None

    @staticmethod
    def _note(sight: Sight, uids: set[str], event: Json) -> None:
        if event["type"] == "ERROR":
            raise RuntimeError(f"the watch broke off: {event['object']}")
        uid = event["object"]["metadata"]["uid"]
        uids.add(uid)
        if event["type"] == "DELETED":
            sight.left.discard(uid)
        else:
            sight.left.add(uid)


@asynccontextmanager
async def watching(client: Plain) -> AsyncIterator[Watcher]:
    """A watcher at work: one watch of Jobs and one of pods."""
    watcher = Watcher()
    versions = {kind: await client.version(kind) for kind in ("jobs", "pods")}
    watcher._tasks += [
        asyncio.create_task(watcher._follow(client, kind, version)) for kind, version in versions.items()
    ]
    try:
        yield watcher
    finally:
        for task in watcher._tasks:
            task.cancel()
        await asyncio.gather(*watcher._tasks, return_exceptions=True)
