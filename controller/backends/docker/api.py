"""The HTTP client of a Docker engine."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiodocker
import aiohttp
from yarl import URL

from controller.backends.http_json import Json, JsonClient, ResponseError
from controller.errors import BackendUnavailableError, EngineError, TransientEngineError

QUICK = aiohttp.ClientTimeout(total=15)
SLOW = aiohttp.ClientTimeout(total=90)  # for starts and removals, which wait for disk and kernel
STREAM = aiohttp.ClientTimeout(total=None, connect=15)
WHO = "the Docker engine"
UNCONFIGURED = "no Docker engine is found: start one, or set DOCKER_HOST to where it listens"
CLOSED = f"the connection to {WHO} was closed"
UNREACHED = aiohttp.ClientConnectorError


class Engine(JsonClient):
    """One Docker engine. `url` None: DOCKER_HOST, or its socket."""

    who = WHO

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._docker: aiodocker.Docker | None = None
        self._closed = False

    async def close(self) -> None:
        """Closes all connections. No request is possible afterwards."""
        self._closed = True
        if self._docker is not None:
            await self._docker.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Json | None = None,
        data: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout = QUICK,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends one request; its answer is read inside the block."""
        session, base = self._connected()
        url = URL(f"{base}/{path}", encoded=True).with_query(params)
        try:
            async with session.request(
                method, url, json=body, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status >= 300 and response.status != 304:
                    raise ResponseError(WHO, response.status, _message(await response.read()))
                yield response
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise TransientEngineError(self._trouble(error)) from error

    async def info(self) -> Json:
        """The engine's description of itself. Raises BackendUnavailableError if it does not answer."""
        try:
            found: Json = await self.json("GET", "info")
        except EngineError as error:
            raise BackendUnavailableError(str(error)) from error
        return found

    def _connected(self) -> tuple[aiohttp.ClientSession, str]:
        """The HTTP session with the engine, and the base of its URLs."""
        if self._closed:
            raise TransientEngineError(CLOSED)
        try:
            if self._docker is None:
                # DOCKER_HOST before any context, as for the docker command; aiodocker itself asks the context first
                self._docker = aiodocker.Docker(self._url or os.environ.get("DOCKER_HOST"))
            return self._docker.session, str(URL(self._docker.docker_host))
        except (AssertionError, ValueError, aiodocker.DockerError) as error:  # raised if it finds no socket
            raise TransientEngineError(f"{UNCONFIGURED} ({error})" if str(error) else UNCONFIGURED) from error
        except OSError as error:
            where = os.environ.get("DOCKER_CERT_PATH")
            words = f"DOCKER_CERT_PATH = {where!r} has no ca.pem, cert.pem and key.pem that can be used: {error}"
            raise TransientEngineError(words) from error

    def _trouble(self, error: Exception) -> str:
        where = WHO if self._url is None else f"{WHO} at {self._url}"
        if isinstance(error, TimeoutError):
            return f"{where} did not answer in time"
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            return f"no right to use {where} ({error}): join the group that owns its socket"
        advice = "; start it, or set DOCKER_HOST to where it listens" if isinstance(error, UNREACHED) else ""
        return f"{where} does not answer: {error or type(error).__name__}{advice}"


def _message(raw: bytes) -> str:
    """The message in an error's body."""
    text = raw.decode("utf-8", "replace").strip()
    try:
        return str(json.loads(text)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return text or "an error without a message"
