"""A fake Kubernetes API server: HTTP over a FakeCluster, each request perhaps with a fault.

As a process of its own: python -m tests.support.fake_kubernetes.api PORT [KUBECONFIG]
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from tests.support.fake_kubernetes.cluster import FakeCluster
from tests.support.fake_kubernetes.query import Lists, log_part, metadata_only, shown
from tests.support.fake_kubernetes.request import Call, understood
from tests.support.fake_kubernetes.store import Object, Refusal
from tests.support.fake_kubernetes.watch import Watches
from tests.support.kubeconfig import kubeconfig

BODY_BYTES = 3 << 20  # of a request, as the real one takes
CHUNK = 64 << 10
VERSION = {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}


class Fault(Enum):
    """What goes wrong with one request."""

    REPLY_LOST = auto()  # done, and the connection is cut without an answer
    CUT = auto()  # not done, and the connection is cut
    SILENT = auto()  # not done, and no answer until the client gives up
    SLOW = auto()  # done after a while, even where the client has given up by then


@dataclass(frozen=True, slots=True)
class Answer:
    """Not done; answered with an error instead."""

    status: int
    reason: str
    message: str
    retry_after: int | None = None


FaultFor = Callable[[str, str, str], Fault | Answer | None]  # verb, resource, name (empty: of no one object)


class FakeApi:
    """One API server; with a `token` it lets in only who bears it. Stop and start it as you like: it keeps its port."""

    def __init__(
        self,
        cluster: FakeCluster | None = None,
        *,
        fault: FaultFor = lambda verb, resource, name: None,
        port: int = 0,
        token: str | None = None,
        slow_seconds: float = 0.05,
        bookmark_seconds: float = 60.0,
        gone_in_stream: bool = True,
    ) -> None:
        self.cluster = cluster or FakeCluster()
        self.fault, self.port, self.token, self.slow_seconds = fault, port, token, slow_seconds
        self.watches = Watches(self.cluster.store, bookmark_seconds, gone_in_stream)
        self.lists = Lists(self.cluster.store)
        self._runner: web.AppRunner | None = None
        self._late: set[asyncio.Task[Object]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        """How many requests came, by verb and resource."""
        return self.cluster.requests

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begins to listen."""
        app = web.Application(client_max_size=BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Cuts every connection, and listens no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for connection in runner.server.connections if runner.server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    def compact(self) -> None:
        """Forgets history: older versions and tokens of pages are answered with 410."""
        self.cluster.store.compact()
        self.lists.forget()

    def kubeconfig(self, path: Path) -> Path:
        """Writes a kubeconfig that names this server. JSON is YAML."""
        server, namespace = {"server": self.url}, self.cluster.namespace
        content = kubeconfig("fake", server, self.token or "any", namespace=namespace)
        path.write_text(json.dumps(content, indent=2))
        return path

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return _refused(refusal)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if request.path == "/version":
            return web.json_response(VERSION)
        if request.path == "/fake/starts":
            return web.json_response([[*key, count] for key, count in self.cluster.starts.items()])
        call = await understood(request)
        self.cluster.requests[call.verb, call.resource] += 1
        self.cluster.store.news.tell()
        fault = self.fault(call.verb, call.resource, call.ref.name)
        match fault:
            case Answer():
                details, pause = call.ref.kind.details(call.ref.name), fault.retry_after
                raise Refusal(fault.status, fault.reason, fault.message, details, retry_after=pause)
            case Fault.CUT:
                return _cut(request)
            case Fault.SILENT:
                await asyncio.Event().wait()  # until the client gives up, by which this is cancelled
        if call.verb == "watch":
            return await self._watch(request, call, fault)
        if call.log:
            return await self._log(request, call, fault)
        if fault is Fault.SLOW:
            task = asyncio.create_task(self._slowly(call))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return web.json_response(await asyncio.shield(task), status=_status(call))
        try:
            done = self._do(call)
        except Refusal:
            if fault is Fault.REPLY_LOST:
                return _cut(request)
            raise
        return _cut(request) if fault is Fault.REPLY_LOST else web.json_response(done, status=_status(call))

    async def _slowly(self, call: Call) -> Object:
        await asyncio.sleep(self.slow_seconds)
        return self._do(call)

    def _do(self, call: Call) -> Object:
        registry, ref, slim = self.cluster.registry, call.ref, metadata_only(call.accept, call.verb)
        match call.verb:
            case "create":
                return shown(registry.create(ref.kind, ref.namespace, call.body, dry_run=call.dry_run), slim)
            case "get":
                return shown(self.cluster.store.get(ref), slim)
            case "list":
                return self.lists.page(ref.kind, ref.namespace, call.query, slim)
            case "patch":
                return shown(registry.patch(ref, call.body, call.content, dry_run=call.dry_run), slim)
            case _:
                return registry.delete(ref, call.options, dry_run=call.dry_run)

    async def _watch(self, request: web.Request, call: Call, fault: Fault | None) -> web.StreamResponse:
        if fault is Fault.REPLY_LOST:
            return _cut(request)
        if fault is Fault.SLOW:
            await asyncio.sleep(self.slow_seconds)
        return await self.watches.serve(
            request, call.ref.kind, call.ref.namespace, call.query, metadata_only(call.accept, "watch")
        )

    async def _log(self, request: web.Request, call: Call, fault: Fault | None) -> web.StreamResponse:
        log = self._output(call)
        if fault is Fault.REPLY_LOST:
            return _cut(request)
        if fault is Fault.SLOW:
            await asyncio.sleep(self.slow_seconds)
        if log is None:
            return web.Response(status=204)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(log), CHUNK):
            await response.write(log[start : start + CHUNK])
        await response.write_eof()
        return response

    def _output(self, call: Call) -> bytes | None:
        """What a pod has written; None of one that no node has. Raises Refusal."""
        pod = self.cluster.store.get(call.ref)
        name, names = call.query.get("container"), [one["name"] for one in pod["spec"]["containers"]]
        if name is not None and name not in names:
            raise Refusal(400, "BadRequest", f"container {name} is not valid for pod {call.ref.name}")
        if not pod["spec"].get("nodeName"):
            return None
        container = (pod["status"].get("containerStatuses") or [{}])[0]
        if "waiting" in container.get("state", {"waiting": {}}):
            reason = container.get("state", {}).get("waiting", {}).get("reason", "ContainerCreating")
            words = f'container "{names[0]}" in pod "{call.ref.name}" is waiting to start: {reason}'
            raise Refusal(400, "BadRequest", words)
        return log_part(self.cluster.kubelet.logs.get(pod["metadata"]["uid"], b""), call.query)


def _status(call: Call) -> int:
    return 201 if call.verb == "create" else 200


def _cut(request: web.Request) -> web.StreamResponse:
    """Ends the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _refused(refusal: Refusal) -> web.Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else None
    return web.json_response(refusal.body, status=refusal.code, headers=headers)


async def main(port: int, kubeconfig: Path | None) -> None:
    """Serves a cluster of its own until killed."""
    async with FakeApi(port=port) as api:
        if kubeconfig is not None:
            api.kubeconfig(kubeconfig)
        print(api.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
