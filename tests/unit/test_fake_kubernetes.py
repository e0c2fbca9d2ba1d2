"""What only the fake Kubernetes API server can do: faults, silence, a forgotten history, a lost node.

What it does as a real one does is in tests/conformance/test_kubernetes_api.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.fake_kubernetes.api import Answer, FakeApi, Fault
from tests.support.fake_kubernetes.cluster import FakeCluster
from tests.support.fake_kubernetes.store import JOBS
from tests.support.kubernetes_apis import FakeKubernetes, job_of


@asynccontextmanager
async def serving(api: FakeApi) -> AsyncIterator[FakeKubernetes]:
    async with api as served, aiohttp.ClientSession() as session:
        yield FakeKubernetes(session, served)


@pytest.fixture
async def api() -> AsyncIterator[FakeKubernetes]:
    async with serving(FakeApi()) as client:
        yield client


async def test_starts_and_requests_are_counted(api: FakeKubernetes) -> None:
    await api.make()
    pod = await api.pod_of()
    await api.release(pod)
    await api.ended()
    await api.release(pod)
    await api.make("two")
    await api.delete("pods", (await api.pod_of("two"))["metadata"]["name"])
    await api.ended("two")
    assert api.cluster.starts == {("one", "1"): 1}
    assert api.api.requests["patch", "pods"] == 2


async def test_a_token_of_pages_that_is_forgotten_is_gone(api: FakeKubernetes) -> None:
    for name in ("a", "b"):
        await api.make(name)
    first = await api.objects("jobs", limit="1")
    api.api.lists.forget()
    status, expired = await api.ask("GET", "jobs", **{"limit": "1", "continue": first["metadata"]["continue"]})
    assert (status, expired["reason"]) == (410, "Expired")


async def test_a_version_that_is_forgotten_may_be_gone_by_the_answers_status() -> None:
    async with serving(FakeApi(gone_in_stream=False)) as api:
        version = await api.forgotten()
        status, error = await api.ask("GET", "pods", watch="1", resourceVersion=version)
        assert status == 410
        assert (error["kind"], error["reason"], error["code"]) == ("Status", "Expired", 410)


async def test_a_watch_can_be_silenced_and_cut(api: FakeKubernetes) -> None:
    api.cluster.job_controller.on = False
    async with api.watch("jobs") as line:
        await api.api.watches.opened("jobs")
        api.api.watches.mute()
        await api.make()
        waiting = asyncio.ensure_future(line())
        await api.objects("jobs")
        assert not waiting.done()
        api.api.watches.unmute()
        assert (await waiting)["type"] == "ADDED"
        api.api.watches.cut()
        with pytest.raises(aiohttp.ClientError):
            await line()
    await api.cluster.until(lambda: not api.api.watches.open())


async def test_a_second_pod_stays_until_its_job_goes(api: FakeKubernetes) -> None:
    await api.make()
    first = await api.pod_of()
    assert api.cluster.double("one")["metadata"]["uid"] != first["metadata"]["uid"]
    assert len(await api.pods("one")) == 2
    api.cluster.remove(JOBS, "one")
    await api.cluster.until(lambda: not api.cluster.pods("one"))


async def test_a_lost_node_leaves_its_trace_and_jobs_expire_when_they_are_told_to(api: FakeKubernetes) -> None:
    pod = await api.started(ttlSecondsAfterFinished=60)
    async with api.watch("pods", (api.cluster.pod(pod) or {})["metadata"]["resourceVersion"]) as line:
        api.cluster.node_lost()
        last = await line()
        while last["type"] != "DELETED":
            last = await line()
    conditions = {one["type"]: one for one in last["object"]["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "DeletionByPodGC"
    assert last["object"]["status"]["phase"] == "Failed"
    await api.cluster.until(lambda: api.cluster.expire() == 1)
    await api.gone()


async def test_faults_happen_before_or_after_the_deed() -> None:
    faults: dict[str, Fault | Answer] = {
        "lost": Fault.REPLY_LOST,
        "cut": Fault.CUT,
        "silent": Fault.SILENT,
        "slow": Fault.SLOW,
        "busy": Answer(429, "TooManyRequests", "the server has received too many requests", 7),
    }
    fault = FakeApi(fault=lambda verb, resource, name: faults.get(name) if verb == "create" else None)
    async with serving(fault) as api:
        for name in ("lost", "cut"):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await api.make(name)
        for name in ("silent", "slow"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await api.make(name)
        async with api.session.post(api.url("jobs"), json=job_of("busy", "")) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
            assert (await answer.json())["details"]["retryAfterSeconds"] == 7
        await api.cluster.until(lambda: api.cluster.job("slow") is not None)
        assert [job["metadata"]["name"] for job in api.cluster.jobs()] == ["lost", "slow"]


async def test_a_server_comes_back_on_its_port_and_asks_for_its_token(tmp_path: Path) -> None:
    served = FakeApi(FakeCluster(), token="secret")
    async with serving(served) as api:
        before = served.url
        assert (await api.ask("GET", "jobs"))[0] == 401
        assert json.loads(served.kubeconfig(tmp_path / "config").read_text())["users"][0]["user"]["token"] == "secret"
        served.token = None
        await api.make()
        async with api.watch("jobs") as line:
            assert (await line())["type"] == "ADDED"
            await served.stop()
            with pytest.raises(aiohttp.ClientError):
                await line()
        with pytest.raises(aiohttp.ClientError):
            await api.ask("GET", "jobs")
        await served.start()
        assert served.url == before
        assert (await api.ask("GET", "jobs", "one"))[0] == 200
