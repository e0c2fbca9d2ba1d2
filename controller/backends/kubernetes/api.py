"""The HTTP client of the Kubernetes API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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
CONNECTIONS = 200  # more than the backend ever makes at once: a watch must not wait for a connection
CLOSING_SECONDS = 0.1  # TLS connections end a moment after they are closed
MOST_PAUSE = 60.0  # seconds; a longer Retry-After is cut to this
CLOSED = f"the connection to {WHO} was closed"
UNCONFIGURED = "no Kubernetes cluster is configured: set KUBECONFIG, or run in a pod with a service account"
JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


NO_FORM = (TypeError, AttributeError, KeyError, IndexError)  # raised by the library for a file that is not a kubeconfig
NO_CLUSTER = (ConfigException, OSError, ValueError, yaml.YAMLError, *NO_FORM)


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Limits of the client."""

    answer_seconds: float = 15.0  # for an answer, unless a request has a timeout of its own
    page: int = 200  # objects in a page of a list; one may have 200 kB of JSON


class Api(JsonClient):
    """Jobs and pods of one namespace.

    In a pod its service account is used, elsewhere what KUBECONFIG (or ~/.kube/config) names as current.
    """

    who = WHO

    def __init__(self, namespace: str, kubeconfig: str | None = None, config: ApiConfig | None = None) -> None:
        self.namespace, self._kubeconfig, self._config = namespace, kubeconfig, config or ApiConfig()
        self._paths = {
            "jobs": f"/apis/batch/v1/namespaces/{namespace}/jobs",
            "pods": f"/api/v1/namespaces/{namespace}/pods",
        }
        self._client: ApiClient | None = None
        self._closed = False
        self._connecting = asyncio.Lock()
        self._busy: tuple[ResponseError, float] | None = (
            None  # the last error with Retry-After, and until when to send nothing
        )

    async def close(self) -> None:
        """Closes all connections. No request is possible afterwards."""
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
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends one request for `jobs[/NAME]` or `pods[/NAME[/log]]`; its answer is read inside the block."""
        self._heed_retry_after()
        timeout = timeout or aiohttp.ClientTimeout(total=self._config.answer_seconds)
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

    def _heed_retry_after(self) -> None:
        """Raises the API's last error again for as long as its Retry-After asks for."""
        if self._busy is not None and time.monotonic() < self._busy[1]:
            error = self._busy[0]
            raise ResponseError(WHO, error.status, error.message)

    async def pages(
        self, kind: str, query: Mapping[str, str], accept: str = JSON
    ) -> AsyncIterator[tuple[Sequence[Json], str]]:
        """Every object of a list, in pages of one consistent snapshot, each with the snapshot's resourceVersion."""
        token = ""
        while True:
            more = {"limit": str(self._config.page)} | ({"continue": token} if token else {})
            page = await self.json("GET", kind, query={**query, **more}, accept=accept)
            yield page.get("items") or (), page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue")
            if not token:
                return

    async def identity(self) -> str:
        """Identifies this namespace of this cluster, by the certificate of the cluster's authority."""
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
        """Has the credentials read again for the next request: they were not accepted, and may have expired."""
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
    configuration.client_session_kwargs = {
        "trust_env": False
    }  # it would read netrc and the environment at each request
    client = ApiClient(configuration)
    client.user_agent = USER_AGENT
    return client


def _fault(error: Exception) -> str:
    words = "it is not a kubeconfig" if isinstance(error, NO_FORM) else " ".join(str(error).split())
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
    """The message in an error's body."""
    text = raw.decode("utf-8", "replace").strip()
    message = text or f"error {status} without a message"
    with suppress(ValueError, AttributeError):  # no JSON, or no object
        message = str(json.loads(text).get("message") or message)
    return message.strip()[:2000]


def _pause(retry_after: str) -> float:
    """The seconds of a Retry-After header; 0 if there is none."""
    return min(float(retry_after), MOST_PAUSE) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _trouble(error: Exception, host: str) -> str:
    if isinstance(error, TimeoutError):
        return f"{WHO} at {host} did not answer in time"
    return f"{WHO} at {host} does not answer: {error or type(error).__name__}"
