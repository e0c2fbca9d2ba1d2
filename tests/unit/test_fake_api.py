"""The pretended Kubernetes API server behaves as the real one does, where the backend would notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.fake_kubernetes.api import Answer, FakeApi, Fault
from tests.support.fake_kubernetes.cluster import FakeCluster
from tests.support.fake_kubernetes.patch import MERGE, STRATEGIC
from tests.support.fake_kubernetes.store import JOBS, PODS, Object

GATE = "test/gate"
SLIM = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"


class Client:
    """Plain HTTP, as little as is needed."""

    def __init__(self, session: aiohttp.ClientSession, api: FakeApi) -> None:
        self.session, self.api, self.cluster = session, api, api.cluster

    def url(self, kind: str, name: str = "") -> str:
        head = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        return f"{self.api.url}{head}/namespaces/{self.cluster.namespace}/{kind}" + (f"/{name}" if name else "")

    async def ask(
        self, method: str, kind: str, name: str = "", body: Any = None, headers: Any = None, **query: str
    ) -> tuple[int, Any]:
        data = json.dumps(body) if body is not None else None
        async with self.session.request(
            method, self.url(kind, name), data=data, params=query, headers=headers
        ) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if answer.content_type == "application/json" else raw

    async def patch(self, kind: str, name: str, body: Object, content: str = MERGE) -> tuple[int, Any]:
        return await self.ask("PATCH", kind, name, body, {"Content-Type": content})

    async def make(self, name: str = "one", command: str = "echo hello; exit 3", **spec: Any) -> Object:
        status, job = await self.ask("POST", "jobs", body=manifest(name, command, **spec))
        assert status == 201
        assert isinstance(job, dict)
        return job

    async def pod_of(self, job: str) -> Object:
        await self.cluster.until(lambda: bool(self.cluster.pods(job)))
        return self.cluster.pods(job)[0]

    async def release(self, pod: Object) -> tuple[int, Any]:
        gone = {"spec": {"schedulingGates": [{"$patch": "delete", "name": GATE}]}}
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, **gone}
        return await self.patch("pods", pod["metadata"]["name"], body, STRATEGIC)

    async def started(self, command: str = "sleep 60", **spec: Any) -> str:
        """The name of a pod that runs."""
        await self.make(command=command, **spec)
        pod = await self.pod_of("one")
        await self.release(pod)
        await self.phase(pod["metadata"]["name"], "Running")
        name: str = pod["metadata"]["name"]
        return name

    async def phase(self, pod: str, phase: str) -> Object:
        await self.cluster.until(lambda: (self.cluster.pod(pod) or {"status": {}})["status"].get("phase") == phase)
        return self.cluster.pod(pod) or {}

    async def gone(self) -> None:
        await self.cluster.until(lambda: not self.cluster.jobs() and not self.cluster.pods())

    @asynccontextmanager
    async def watch(
        self, kind: str, version: str = "", headers: Any = None, **query: str
    ) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        params = {"watch": "1", "resourceVersion": version, **query}
        async with self.session.get(self.url(kind), params=params, headers=headers) as answer:
            assert answer.status == 200

            async def line() -> Any:
                async with asyncio.timeout(5):
                    raw = await answer.content.readline()
                return json.loads(raw) if raw else None

            yield line


def manifest(name: str, command: str, *, timeout: int = 60, **spec: Any) -> Object:
    container = {
        "name": "sandbox",
        "image": "busybox",
        "command": ["/bin/sh", "-c", "…", "sandbox", "/dev/termination-log", str(timeout)],
        "args": [command],
    }
    labels = {"sandboxId": name, "attempt": "1"}
    pod = {"restartPolicy": "Never", "schedulingGates": [{"name": GATE}], "containers": [container]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    common = {"backoffLimit": 0, "podReplacementPolicy": "Failed", "template": template}
    return {"metadata": {"name": name, "labels": labels}, "spec": {**common, **spec}}


def run(test: Callable[[Client], Awaitable[None]], api: FakeApi | None = None) -> None:
    async def go() -> None:
        async with api or FakeApi() as served, aiohttp.ClientSession() as session:
            await test(Client(session, served))

    asyncio.run(go())


def kinds(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


def test_a_job_runs_from_its_gate_to_its_condition() -> None:
    async def test(client: Client) -> None:
        job = await client.make(command="echo $$HOME; exit 3")
        pod = await client.pod_of("one")
        name, meta = pod["metadata"]["name"], pod["metadata"]
        assert meta["finalizers"] == ["batch.kubernetes.io/job-tracking"]
        assert meta["ownerReferences"][0]["uid"] == meta["labels"]["controller-uid"] == job["metadata"]["uid"]
        assert pod["status"]["conditions"][0]["reason"] == "SchedulingGated"
        assert "nodeName" not in pod["spec"]
        assert (await client.ask("GET", f"pods/{name}/log"))[0] == 204
        assert (await client.release(pod))[0] == 200
        pod = await client.phase(name, "Failed")
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert [line.split()[0] for line in ended["message"].splitlines()] == [
            "started", "started_at", "exit", "ended_at"]  # fmt: skip
        assert (ended["exitCode"], ended["reason"], pod["spec"]["nodeName"]) == (3, "Error", "fake-node")
        assert (await client.ask("GET", f"pods/{name}/log"))[1] == b"$HOME\n"
        await client.cluster.until(lambda: "conditions" in (client.cluster.job("one") or {"status": {}})["status"])
        assert (await client.ask("GET", "jobs", "one"))[1]["status"]["conditions"][-1]["type"] == "Failed"
        assert "finalizers" not in (client.cluster.pod(name) or {})["metadata"]
        assert (await client.release(pod))[0] == 200  # late, and changes nothing
        assert client.cluster.starts == {("one", "1"): 1}
        assert client.api.requests["patch", "pods"] == 2

    run(test)


def test_a_timeout_and_a_deadline_leave_their_traces() -> None:
    async def test(client: Client) -> None:
        late = await client.started("sleep 60", template=manifest("", "sleep 60", timeout=0)["spec"]["template"])
        pod = await client.phase(late, "Failed")
        assert "timeout\nexit 143\n" in pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
        await client.ask("DELETE", "jobs", "one", {"propagationPolicy": "Background"})
        await client.gone()
        killed = await client.started()
        assert (await client.patch("pods", killed, {"spec": {"activeDeadlineSeconds": 1}}))[0] == 200
        pod = await client.phase(killed, "Failed")
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (pod["status"]["reason"], ended["exitCode"]) == ("DeadlineExceeded", 137)
        assert "exit" not in ended["message"]
        assert (await client.patch("pods", killed, {"spec": {"activeDeadlineSeconds": 9}}))[0] == 422

    run(test)


def test_lists_come_in_pages_of_one_moment() -> None:
    async def test(client: Client) -> None:
        client.cluster.job_controller.on = False
        for name in ("a", "b", "c"):
            await client.make(name)
        _, first = await client.ask("GET", "jobs", limit="2")
        await client.make("d")
        assert [one["metadata"]["name"] for one in first["items"]] == ["a", "b"]
        assert "kind" not in first["items"][0]
        token = first["metadata"]["continue"]
        _, rest = await client.ask("GET", "jobs", **{"limit": "2", "continue": token})
        assert [one["metadata"]["name"] for one in rest["items"]] == ["c"]
        assert rest["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}
        client.api.lists.forget()
        status, expired = await client.ask("GET", "jobs", **{"limit": "2", "continue": token})
        assert (status, expired["reason"]) == (410, "Expired")
        _, slim = await client.ask("GET", "jobs", headers={"Accept": SLIM.format("List")}, labelSelector="sandboxId=c")
        assert (slim["kind"], slim["items"][0]["kind"]) == ("PartialObjectMetadataList", "PartialObjectMetadata")
        assert [one["metadata"]["name"] for one in slim["items"]] == ["c"]
        assert "spec" not in slim["items"][0]
        for selector, count in {"sandboxId": 4, "!sandboxId": 0, "sandboxId!=a,attempt=1": 3}.items():
            assert len((await client.ask("GET", "jobs", labelSelector=selector))[1]["items"]) == count

    run(test)


def test_a_watch_goes_on_from_a_version_and_tells_of_deletions() -> None:
    async def test(client: Client) -> None:
        client.cluster.job_controller.on = False
        version = (await client.ask("GET", "jobs"))[1]["metadata"]["resourceVersion"]
        await client.make()
        slim = {"Accept": SLIM.format("")}
        async with client.watch("jobs", version, slim, allowWatchBookmarks="true", timeoutSeconds="1") as line:
            added = await line()
            assert (added["type"], added["object"]["kind"]) == ("ADDED", "PartialObjectMetadata")
            await client.patch("jobs", "one", {"metadata": {"annotations": {"x": "y"}}})
            await client.patch("jobs", "one", {"metadata": {"annotations": {"x": "y"}}})  # changes nothing
            await client.ask("DELETE", "jobs", "one", {"propagationPolicy": "Background"})
            events = [await line(), await line(), await line(), await line()]
        assert kinds(events[:3]) == ["MODIFIED", "DELETED", "BOOKMARK"]
        assert events[3] is None
        versions = [int(one["object"]["metadata"]["resourceVersion"]) for one in (added, *events[:3])]
        assert versions == sorted(versions)
        async with client.watch("jobs", str(versions[1]), labelSelector="sandboxId=one") as line:
            assert (await line())["type"] == "DELETED"

    run(test)


@pytest.mark.parametrize("in_stream", [True, False])
def test_a_version_that_is_forgotten_is_gone(in_stream: bool) -> None:
    async def test(client: Client) -> None:
        version = (await client.ask("GET", "pods"))[1]["metadata"]["resourceVersion"]
        client.api.compact()
        if in_stream:
            async with client.watch("pods", version) as line:
                error = (await line())["object"]
                assert await line() is None
        else:
            status, error = await client.ask("GET", "pods", watch="1", resourceVersion=version)
            assert status == 410
        assert (error["kind"], error["reason"], error["code"]) == ("Status", "Expired", 410)

    run(test, FakeApi(gone_in_stream=in_stream))


def test_a_watch_can_be_silenced_and_cut() -> None:
    async def test(client: Client) -> None:
        client.cluster.job_controller.on = False
        async with client.watch("jobs") as line:
            await client.api.watches.opened("jobs")
            client.api.watches.mute()
            await client.make()
            waiting = asyncio.ensure_future(line())
            await client.ask("GET", "jobs")
            assert not waiting.done()
            client.api.watches.unmute()
            assert (await waiting)["type"] == "ADDED"
            client.api.watches.cut()
            with pytest.raises(aiohttp.ClientError):
                await line()
        await client.cluster.until(lambda: not client.api.watches.open())

    run(test)


def test_another_uid_is_a_conflict_and_a_taken_name_too() -> None:
    async def test(client: Client) -> None:
        job = await client.make()
        other = {"uid": "another"}
        for status, answer in (
            await client.ask("DELETE", "jobs", "one", {"preconditions": other}),
            await client.patch("jobs", "one", {"metadata": other}),
            await client.patch("jobs", "one", {"metadata": {"resourceVersion": "1"}}),
        ):
            assert (status, answer["reason"]) == (409, "Conflict")
        status, answer = await client.ask("POST", "jobs", body=manifest("one", ""))
        assert (status, answer["reason"]) == (409, "AlreadyExists")
        assert answer["message"] == 'jobs.batch "one" already exists'
        client.cluster.job_quota = 1
        status, answer = await client.ask("POST", "jobs", body=manifest("one", ""))
        assert (status, answer["reason"]) == (403, "Forbidden")
        assert answer["message"].endswith("used: count/jobs.batch=1, limited: count/jobs.batch=1")
        client.cluster.job_quota = None
        assert (await client.ask("POST", "jobs", body=manifest("two", ""), dryRun="All"))[0] == 201
        status, answer = await client.ask("GET", "jobs", "two")
        assert (status, answer["details"]) == (404, {"name": "two", "group": "batch", "kind": "jobs"})
        status, answer = await client.ask("POST", "jobs", body=manifest("Two", "") | {"spec": {}})
        assert (status, answer["reason"], len(answer["details"]["causes"])) == (422, "Invalid", 3)
        wanted = {"uid": job["metadata"]["uid"]}
        assert (await client.ask("DELETE", "jobs", "one", {"preconditions": wanted}))[0] == 200

    run(test)


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
def test_a_deleted_job_takes_its_pod_along_or_leaves_it(policy: str) -> None:
    async def test(client: Client) -> None:
        pod = await client.started()
        version = (await client.ask("GET", "pods"))[1]["metadata"]["resourceVersion"]
        await client.ask("DELETE", "jobs", "one", {"propagationPolicy": policy})
        if policy == "Background":
            assert client.cluster.job("one") is None
        await client.cluster.until(lambda: client.cluster.job("one") is None)
        if policy == "Orphan":
            assert "ownerReferences" not in (client.cluster.pod(pod) or {})["metadata"]
            return
        await client.gone()
        async with client.watch("pods", version) as line:
            events = [await line()]
            while events[-1]["type"] != "DELETED":
                events.append(await line())
        assert any("deletionTimestamp" in one["object"]["metadata"] for one in events if one["type"] == "MODIFIED")
        state = events[-1]["object"]["status"]["containerStatuses"][0]["state"]
        assert state["terminated"]["exitCode"] == 137

    run(test)


def test_a_gated_pod_that_is_deleted_never_starts_and_fails_its_job() -> None:
    async def test(client: Client) -> None:
        await client.make()
        pod = await client.pod_of("one")
        await client.ask("DELETE", "pods", pod["metadata"]["name"])
        await client.release(pod)
        await client.cluster.until(lambda: "conditions" in (client.cluster.job("one") or {})["status"])
        assert not client.cluster.pods()
        assert not client.cluster.starts

    run(test)


def test_a_pod_that_goes_by_force_is_replaced_and_the_quota_holds_pods_back() -> None:
    async def test(client: Client) -> None:
        await client.make()
        first = await client.pod_of("one")
        client.cluster.pod_quota = 1
        await client.make("two")
        assert not client.cluster.pods("two")
        client.cluster.remove(PODS, first["metadata"]["name"])
        await client.cluster.until(lambda: len(client.cluster.pods()) == 1)
        client.cluster.pod_quota = 3
        await client.cluster.until(lambda: len(client.cluster.pods()) == 2)
        assert client.cluster.double("one")["metadata"]["uid"] != first["metadata"]["uid"]
        assert len(client.cluster.pods("one")) == 2
        client.cluster.remove(JOBS, "one")
        await client.cluster.until(lambda: not client.cluster.pods("one"))

    run(test)


def test_nodes_and_evictions_leave_their_traces_and_a_ttl_removes() -> None:
    async def test(client: Client) -> None:
        for disturb, reason in (("evict", "EvictionByEvictionAPI"), ("lost", "DeletionByPodGC")):
            pod = await client.started(ttlSecondsAfterFinished=60)
            async with client.watch("pods", (client.cluster.pod(pod) or {})["metadata"]["resourceVersion"]) as line:
                client.cluster.evict(pod) if disturb == "evict" else client.cluster.node_lost()
                last = await line()
                while last["type"] != "DELETED":
                    last = await line()
            conditions = {one["type"]: one for one in last["object"]["status"]["conditions"]}
            assert conditions["DisruptionTarget"]["reason"] == reason
            assert last["object"]["status"]["phase"] == "Failed"
            await client.cluster.until(lambda: client.cluster.expire() == 1)
            await client.gone()

    run(test)


def test_faults_happen_before_or_after_the_deed() -> None:
    faults: dict[str, Fault | Answer] = {
        "lost": Fault.REPLY_LOST,
        "cut": Fault.CUT,
        "silent": Fault.SILENT,
        "slow": Fault.SLOW,
        "busy": Answer(429, "TooManyRequests", "the server has received too many requests", 7),
    }

    async def test(client: Client) -> None:
        for name in ("lost", "cut"):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await client.make(name)
        for name in ("silent", "slow"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.make(name)
        async with client.session.post(client.url("jobs"), json=manifest("busy", "")) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
            assert (await answer.json())["details"]["retryAfterSeconds"] == 7
        await client.cluster.until(lambda: client.cluster.job("slow") is not None)
        assert [job["metadata"]["name"] for job in client.cluster.jobs()] == ["lost", "slow"]

    run(test, FakeApi(fault=lambda verb, resource, name: faults.get(name) if verb == "create" else None))


def test_logs_are_raw_and_their_end_can_be_asked_for() -> None:
    async def test(client: Client) -> None:
        pod = await client.started()
        log = b"\xff\r\n" + b"x" * 3_000_000 + b"\nlast\nunended"
        client.cluster.set_log(pod, log)
        assert (await client.ask("GET", f"pods/{pod}/log"))[1] == log
        assert (await client.ask("GET", f"pods/{pod}/log", tailLines="2"))[1] == b"last\nunended"
        waiting = {"name": "sandbox", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
        client.cluster.set_status(pod, {"containerStatuses": [waiting]})
        assert (await client.ask("GET", f"pods/{pod}/log"))[0] == 400
        client.cluster.remove(PODS, pod)
        assert (await client.ask("GET", f"pods/{pod}/log"))[0] == 404

    run(test)


def test_a_server_comes_back_on_its_port_and_asks_for_its_token(tmp_path: Path) -> None:
    async def go() -> None:
        cluster = FakeCluster()
        api = FakeApi(cluster, token="secret")
        async with api, aiohttp.ClientSession() as session:
            client, before = Client(session, api), api.url
            assert (await client.ask("GET", "jobs"))[0] == 401
            assert json.loads(api.kubeconfig(tmp_path / "config").read_text())["users"][0]["user"]["token"] == "secret"
            api.token = None
            await client.make()
            async with client.watch("jobs") as line:
                assert (await line())["type"] == "ADDED"
                await api.stop()
                with pytest.raises(aiohttp.ClientError):
                    await line()
            with pytest.raises(aiohttp.ClientError):
                await client.ask("GET", "jobs")
            await api.start()
            assert api.url == before
            assert (await client.ask("GET", "jobs", "one"))[0] == 200

    asyncio.run(go())
