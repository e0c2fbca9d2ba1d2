"""A Kubernetes API over plain HTTP, the fake one or a real cluster's: the same requests to both."""

from __future__ import annotations

import asyncio
import json
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp

from controller.backends.kubernetes.manifest import GATE, job_manifest
from controller.backends.kubernetes.options import JobOptions
from controller.protocol.model import Key, Launch
from tests.support.cluster import IMAGE, Namespace
from tests.support.fake_kubernetes.api import FakeApi
from tests.support.fake_kubernetes.patch import MERGE, STRATEGIC
from tests.support.fake_kubernetes.store import Object

INSTALLATION = str(UUID(int=1))
SECONDS = 40.0  # that a real cluster may take for anything
SLIM = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"
Line = Callable[[], Awaitable[Any]]


class KubernetesApi(ABC):
    """Requests about the Jobs and pods of one namespace, and what is done differently to the fake and to a cluster."""

    def __init__(self, session: aiohttp.ClientSession, url: str, namespace: str, poll_seconds: float) -> None:
        self.session, self._url, self.namespace, self._poll_seconds = session, url, namespace, poll_seconds

    @abstractmethod
    async def limit(self, **hard: int) -> None:
        """Gives the namespace a quota: `jobs`, `pods`."""

    @abstractmethod
    async def evict(self, pod: str) -> None:
        """Has a pod evicted, as a drain of its node does."""

    @abstractmethod
    async def forgotten(self) -> str:
        """A resource version whose changes are forgotten."""

    @abstractmethod
    async def unpullable(self) -> str:
        """The name of a pod whose image cannot be pulled."""

    @abstractmethod
    async def writes(self, log: bytes) -> str:
        """The name of a pod whose log is that, after its first line."""

    def url(self, kind: str, name: str = "") -> str:
        """Where a kind of object, or one of it, is found."""
        head = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        return f"{self._url}{head}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    async def ask(
        self, method: str, kind: str, name: str = "", body: Any = None, headers: Any = None, **query: str
    ) -> tuple[int, Any]:
        """One request: the status and the body, decoded if it is JSON."""
        data = json.dumps(body) if body is not None else None
        headers = ({"Content-Type": "application/json"} if body is not None else {}) | (headers or {})
        async with self.session.request(
            method, self.url(kind, name), data=data, params=query, headers=headers
        ) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if answer.content_type == "application/json" else raw

    async def patch(self, kind: str, name: str, body: Object, content: str = MERGE) -> tuple[int, Any]:
        """A merge patch, or one of that content type."""
        return await self.ask("PATCH", kind, name, body, {"Content-Type": content})

    async def delete(self, kind: str, name: str, **options: Any) -> tuple[int, Any]:
        """A deletion with these DeleteOptions."""
        return await self.ask("DELETE", kind, name, {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    async def remove(self, pod: str) -> None:
        """A pod goes at once, uncounted by its Job."""
        await self.patch("pods", pod, {"metadata": {"finalizers": None}})
        await self.delete("pods", pod, gracePeriodSeconds=0)

    async def objects(self, kind: str, **query: str) -> Object:
        """A whole list."""
        status, found = await self.ask("GET", kind, **query)
        assert status == 200, found
        assert isinstance(found, dict)
        return found

    async def find(self, kind: str, name: str) -> Object | None:
        """One object, if it is there."""
        status, found = await self.ask("GET", kind, name)
        return found if status == 200 else None

    async def pods(self, job: str) -> list[Object]:
        """The pods that say they are that Job's."""
        found: list[Object] = (await self.objects("pods", labelSelector=f"batch.kubernetes.io/job-name={job}"))["items"]
        return found

    async def until(self, what: str, true: Callable[[], Awaitable[Any]]) -> Any:
        """Waits for a true answer, and returns it. Raises TimeoutError."""
        try:
            async with asyncio.timeout(SECONDS):
                while not (answer := await true()):
                    await asyncio.sleep(self._poll_seconds)
        except TimeoutError as error:
            pods = [one["status"] for one in (await self.objects("pods"))["items"]]
            raise TimeoutError(f"never saw {what}; pods: {pods}") from error
        return answer

    async def make(self, name: str = "one", command: str = "exit 3", *, timeout: int = 60, **spec: Any) -> Object:
        """A new Job."""
        status, job = await self.ask("POST", "jobs", body=job_of(name, command, timeout=timeout, **spec))
        assert status == 201, job
        assert isinstance(job, dict)
        return job

    async def pod_of(self, job: str = "one") -> Object:
        """The Job's pod, once it is there."""
        found: list[Object] = await self.until(f"a pod of {job}", lambda: self.pods(job))
        return found[0]

    async def release(self, pod: Object) -> tuple[int, Any]:
        """Takes the gate off a pod."""
        gone = {"spec": {"schedulingGates": [{"$patch": "delete", "name": GATE}]}}
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, **gone}
        return await self.patch("pods", pod["metadata"]["name"], body, STRATEGIC)

    async def started(self, command: str = "sleep 60", **spec: Any) -> str:
        """The name of the pod of Job `one`, which runs."""
        await self.make(command=command, **spec)
        pod = await self.pod_of()
        await self.release(pod)
        await self.phase(pod["metadata"]["name"], "Running")
        name: str = pod["metadata"]["name"]
        return name

    async def phase(self, pod: str, phase: str) -> Object:
        """The pod, once it has that phase."""

        async def reached() -> Object | None:
            found = await self.find("pods", pod)
            return found if found is not None and found["status"].get("phase") == phase else None

        found: Object = await self.until(f"{pod} {phase}", reached)
        return found

    async def gone(self) -> None:
        """Waits until no Job and no pod is left."""

        async def empty() -> bool:
            return not (await self.objects("jobs"))["items"] and not (await self.objects("pods"))["items"]

        await self.until("the namespace empty", empty)

    async def ended(self, job: str = "one") -> Object:
        """The Job, once it says that it has ended."""

        async def told() -> Object | None:
            found = await self.find("jobs", job)
            conditions = (found or {"status": {}})["status"].get("conditions", ())
            return found if any(one["type"] in ("Complete", "Failed") for one in conditions) else None

        found: Object = await self.until(f"{job} ended", told)
        return found

    @asynccontextmanager
    async def watch(self, kind: str, version: str = "", headers: Any = None, **query: str) -> AsyncIterator[Line]:
        """What reads the next event of a watch; None at its end."""
        params = {"watch": "1", "resourceVersion": version, **query}
        async with self.session.get(self.url(kind), params=params, headers=headers) as answer:
            assert answer.status == 200

            async def line() -> Any:
                async with asyncio.timeout(SECONDS):
                    raw = await answer.content.readline()
                return json.loads(raw) if raw else None

            yield line


class FakeKubernetes(KubernetesApi):
    """The fake API server, with its own ways behind the API."""

    def __init__(self, session: aiohttp.ClientSession, api: FakeApi) -> None:
        super().__init__(session, api.url, api.cluster.namespace, poll_seconds=0.01)
        self.api, self.cluster = api, api.cluster

    async def limit(self, **hard: int) -> None:
        self.cluster.job_quota, self.cluster.pod_quota = hard.get("jobs"), hard.get("pods")

    async def evict(self, pod: str) -> None:
        self.cluster.evict(pod)

    async def forgotten(self) -> str:
        version: str = (await self.objects("pods"))["metadata"]["resourceVersion"]
        self.api.compact()
        return version

    async def unpullable(self) -> str:
        pod = await self.started()
        waiting = {"name": "sandbox", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
        self.cluster.set_status(pod, {"containerStatuses": [waiting]})
        return pod

    async def writes(self, log: bytes) -> str:
        pod = await self.started()
        first = (await self.ask("GET", f"pods/{pod}/log"))[1]
        self.cluster.set_log(pod, first + log)
        return pod


class RealKubernetes(KubernetesApi):
    """A cluster's own API, as whoever may do everything there."""

    def __init__(self, session: aiohttp.ClientSession, namespace: Namespace) -> None:
        super().__init__(session, str(namespace.admin.configuration.host), namespace.name, poll_seconds=0.1)
        self._admin = namespace.admin

    async def limit(self, **hard: int) -> None:
        names = {"jobs": "count/jobs.batch", "pods": "pods"}
        limits = {names[kind]: str(most) for kind, most in hard.items()}
        await self.ask("DELETE", "resourcequotas", "sandboxes")
        if not limits:
            return
        quota = {"metadata": {"name": "sandboxes"}, "spec": {"hard": limits}}

        async def counted() -> bool:
            found = await self.find("resourcequotas", "sandboxes") or {}
            return set(found.get("status", {}).get("used", ())) == set(limits)

        assert (await self.ask("POST", "resourcequotas", body=quota))[0] == 201
        await self.until("the quota counted", counted)

    async def evict(self, pod: str) -> None:
        status, _ = await self.ask("POST", f"pods/{pod}/eviction", body={"metadata": {"name": pod}})
        assert status == 201

    async def forgotten(self) -> str:
        return "1"

    async def unpullable(self) -> str:
        body = job_of("one", "true")
        body["spec"]["template"]["spec"]["containers"][0]["image"] = f"{IMAGE}-that-nobody-pushed"
        assert (await self.ask("POST", "jobs", body=body))[0] == 201
        pod = await self.pod_of()
        await self.release(pod)
        name: str = pod["metadata"]["name"]

        async def waits() -> bool:
            statuses = (await self.find("pods", name) or {"status": {}})["status"].get("containerStatuses") or [{}]
            waiting = statuses[0].get("state", {}).get("waiting", {})
            return waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff")

        await self.until("an image that is not there", waits)
        return name

    async def writes(self, log: bytes) -> str:
        octal = "".join(f"\\{byte:03o}" for byte in log.replace(b"x" * 3_000_000, b"%"))
        head, _, tail = octal.partition("\\045")
        many = "head -c 3000000 /dev/zero | tr '\\000' x"
        pod = await self.started(f"printf '{head}'; {many}; printf '{tail}'; sleep 60")

        async def whole() -> bool:
            found: bytes = (await self.ask("GET", f"pods/{pod}/log"))[1]
            return found.endswith(log)

        await self.until("the whole log", whole)
        return pod


def job_of(name: str, command: str, *, timeout: int = 60, **spec: Any) -> Object:
    """A Job as the controller asks for it, but for its name and these parts of its spec."""
    launch = Launch(Key(uuid4(), 1), command, timeout, image=IMAGE, memory_mib=64, disk_mib=16)
    body = job_manifest(launch, IMAGE, INSTALLATION, JobOptions(), 600)
    body["metadata"]["name"] = name
    for labelled in (body, body["spec"]["template"]):
        labelled["metadata"]["labels"]["sandboxId"] = name
    body["spec"] |= spec
    return body


def trust(namespace: Namespace) -> tuple[ssl.SSLContext, dict[str, str]]:
    """How the cluster's own credentials go with every request: by TLS, and in its head."""
    configuration = namespace.admin.configuration
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    token = configuration.get_api_key_with_prefix("authorization")
    return context, {"Authorization": token} if token else {}
