"""An HTTP server before the cluster's that notes what is asked, in the words that a Role has for it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from kubernetes import client

HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}
VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update"}


@dataclass(frozen=True, order=True)
class Asked:
    """One request: `namespace` is empty for what is in none."""

    namespace: str
    group: str
    kind: str
    verb: str


@dataclass
class Recorder:
    """`asked` holds each kind of request once; `refused` those that the API server forbade."""

    url: str = ""
    asked: set[Asked] = field(default_factory=set)
    refused: set[Asked] = field(default_factory=set)


def understood(method: str, path: str, query: str) -> Asked | None:
    """As the API server understands a request; None where it is about no object."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "v1"]:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return None
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 1:
        namespace, rest = rest[1], rest[2:] if len(rest) > 2 else rest
    if not rest:
        return None
    kind, name = "/".join([rest[0], *rest[2:3]]), rest[1:2]
    if method == "GET":
        verb = "watch" if "watch=" in query else "get" if name else "list"
    else:
        verb = VERBS.get(method) or ("delete" if name else "deletecollection")
    return Asked(namespace, group, kind, verb)


@contextmanager
def recording(known: client.Configuration) -> Iterator[Recorder]:
    """Such a server before the cluster of this configuration; callers bring their own tokens."""
    recorder, loop = Recorder(), asyncio.new_event_loop()
    trusted = ssl.create_default_context(cafile=str(known.ssl_ca_cert))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, ClientSession]:
        session = ClientSession(
            connector=TCPConnector(ssl=trusted, limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
        )

        async def forward(request: web.Request) -> web.StreamResponse:
            asked = understood(request.method, request.path, request.query_string)
            if asked is not None:
                recorder.asked.add(asked)
            headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP}
            headers["Accept-Encoding"] = "identity"
            url, body = f"{known.host}{request.raw_path}", await request.read()
            async with session.request(request.method, url, headers=headers, data=body) as answer:
                if answer.status == 403 and asked is not None:
                    recorder.refused.add(asked)
                kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner, session

    async def stop(runner: web.AppRunner, session: ClientSession) -> None:
        await runner.cleanup()
        await session.close()

    started = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield recorder
    finally:
        asyncio.run_coroutine_threadsafe(stop(*started), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
