"""The HTTP side of a cluster: one way to send, one place that says what went wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, SERVICE_TOKEN_FILENAME

from controller.backends.http_json import Json, JsonClient, ResponseError
from controller.errors import TransientEngineError

WHO = "the Kubernetes API"
USER_AGENT = "ci-fixer-sandbox-controller"
QUICK = aiohttp.ClientTimeout(total=15)
PAGE = "200"  # objects of a page of a list: as JSON, one may have 200 kB
CONNECTIONS = 200  # more than calls are ever under way at once: a watch must not wait for them
CLOSING_SECONDS = 0.1  # TLS connections are gone a moment after they were closed
MOST_PAUSE = 60.0  # seconds that a Retry-After is heeded
CLOSED = f"the connection to {WHO} was closed"
UNCONFIGURED = "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a service account"
JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


NO_FORM = (TypeError, AttributeError, KeyError, IndexError)  # what the library meets in a file of another form
NO_CLUSTER = (ConfigException, OSError, ValueError, yaml.YAMLError, *NO_FORM)


class Api(JsonClient):
    """Jobs and pods of one namespace.

    In a pod its service account is used, elsewhere what KUBECONFIG (or ~/.kube/config) names as current.
    """

    who = WHO

    def __init__(self, namespace: str, kubeconfig: str | None = None) -> None:
        self.namespace, self._kubeconfig = namespace, kubeconfig
        self._paths = {
            "jobs": f"/apis/batch/v1/namespaces/{namespace}/jobs",
            "pods": f"/api/v1/namespaces/{namespace}/pods",
        }
        self._client: ApiClient | None = None
        self._closed = False
        self._connecting = asyncio.Lock()
        self._busy: tuple[ResponseError, float] | None = None  # what it said, and until when it wants to be left alone

    async def close(self) -> None:
        """Ends all connections, for good."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()
            await asyncio.sleep(CLOSING_SECONDS)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content: str = JSON,
        accept: str = JSON,
        timeout: aiohttp.ClientTimeout = QUICK,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends one request for `jobs[/NAME]` or `pods[/NAME[/log]]`; its answer is read inside the block."""
        self._leave_alone()
        client = await self._connected()
        kind, _, rest = path.partition("/")
        url = self._paths[kind] + (f"/{rest}" if rest else "")
        headers = {"Accept": accept, "Content-Type": content}
        try:
            verb, full_url, all_headers, _, _ = await client.param_serialize(
                method, url, query_params=list((query or {}).items()), header_params=headers,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            answer = await client.call_api(verb, full_url, all_headers, body, _request_timeout=timeout)
            async with answer.response as response:
                if response.status >= 300:
                    error = ResponseError(WHO, response.status, _message(response.status, await response.read()))
                    if error.status == 401:
                        await self._forget(client)
                    if pause := _pause(response.headers.get("Retry-After", "")):
                        self._busy = error, time.monotonic() + pause
                    raise error
                yield response
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise TransientEngineError(_trouble(error, client.configuration.host)) from error

    def _leave_alone(self) -> None:
        """Raises what the API said last, for as long as it asked to be left alone (Retry-After)."""
        if self._busy is not None and time.monotonic() < self._busy[1]:
            error = self._busy[0]
            raise ResponseError(WHO, error.status, error.message)

    async def pages(
        self, kind: str, query: Mapping[str, str], accept: str = JSON
    ) -> AsyncIterator[tuple[Sequence[Json], str]]:
        """Every object of a list, in pages that are all of one moment, each with the version of that moment."""
        token = ""
        while True:
            more = {"limit": PAGE, "continue": token} if token else {"limit": PAGE}
            page = await self.json("GET", kind, query={**query, **more}, accept=accept)
            yield page.get("items") or (), page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue")
            if not token:
                return

    async def identity(self) -> str:
        """What tells this namespace of this cluster from any other: the certificate of the cluster's authority."""
        configuration = (await self._connected()).configuration
        try:
            mark = _authority(configuration)
        except (OSError, ValueError) as error:
            raise TransientEngineError(f"the certificate of the cluster's authority cannot be read: {error}") from error
        return f"{mark}/{self.namespace}"

    async def _connected(self) -> ApiClient:
        async with self._connecting:
            if self._closed:
                raise TransientEngineError(CLOSED)
            if self._client is None:
                try:
                    self._client = await _connect(self._kubeconfig)
                except NO_CLUSTER as error:
                    raise TransientEngineError(f"{UNCONFIGURED} ({_fault(error)})") from error
            return self._client

    async def _forget(self, client: ApiClient) -> None:
        """Its credentials are not accepted: they may have run out, and are read again for the next request."""
        if self._client is client:
            self._client = None
            await client.close()


async def _connect(kubeconfig: str | None) -> ApiClient:
    configuration = Configuration()
    if kubeconfig is None and os.environ.get(SERVICE_HOST_ENV_NAME) and Path(SERVICE_TOKEN_FILENAME).exists():
        load_incluster_config(client_configuration=configuration)
    else:
        paths = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        if not any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep)):
            raise ConfigException(f"{paths} is no file")
        await load_kube_config(paths, client_configuration=configuration, persist_config=False)
    configuration.connection_pool_maxsize = CONNECTIONS
    configuration.proxy = configuration.proxy or _proxy(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}  # it reads netrc and environment for each request
    client = ApiClient(configuration)
    client.user_agent = USER_AGENT
    return client


def _fault(error: Exception) -> str:
    words = "it does not have the form of a kubeconfig" if isinstance(error, NO_FORM) else " ".join(str(error).split())
    given = os.environ.get("KUBECONFIG")
    return f"KUBECONFIG = {given!r}: {words}" if given else words


def _proxy(host: str) -> str | None:
    """The proxy that the environment names for this address."""
    address = urlsplit(host)
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


def _authority(configuration: Configuration) -> str:
    if not configuration.ssl_ca_cert:
        return str(configuration.host)
    text = Path(configuration.ssl_ca_cert).read_text("utf-8", "replace")
    first = text[text.index("-----BEGIN") : text.index("-----END") + len("-----END CERTIFICATE-----")]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()[:16]


def _message(status: int, raw: bytes) -> str:
    """What the API says in an error's body."""
    text = raw.decode("utf-8", "replace").strip()
    message = text or f"error {status} without a word"
    with suppress(ValueError, AttributeError):  # no JSON, or no object
        message = str(json.loads(text).get("message") or message)
    return message.strip()[:2000]


def _pause(retry_after: str) -> float:
    """For how many seconds the API wants to be left alone."""
    return min(float(retry_after), MOST_PAUSE) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _trouble(error: Exception, host: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{WHO} at {host} gave no answer in time"
    return f"{WHO} at {host} does not answer: {error or type(error).__name__}"
