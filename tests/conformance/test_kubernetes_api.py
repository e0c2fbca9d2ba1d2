"""The fake Kubernetes API server answers as a real cluster's does, wherever the backend would notice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from controller.backends.kubernetes.manifest import RECORDED, end_now, recorded
from tests.support.cluster import Namespace, make_namespace
from tests.support.engines import need_cluster
from tests.support.fake_kubernetes.api import FakeApi
from tests.support.fake_kubernetes.cluster import FakeCluster
from tests.support.fake_kubernetes.store import Object
from tests.support.kubernetes_apis import SLIM, FakeKubernetes, KubernetesApi, RealKubernetes, job_of, trust


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[Namespace | None]:
    """A namespace of the test's own on the real cluster; None for the fake."""
    if request.param == "fake":
        yield None
        return
    need_cluster()
    made = make_namespace(labels={})
    yield made
    made.remove()


@pytest.fixture
async def api(namespace: Namespace | None) -> AsyncIterator[KubernetesApi]:
    """The API, empty."""
    if namespace is None:
        async with FakeApi(FakeCluster(ttl_factor=1.0)) as served, aiohttp.ClientSession() as session:
            yield FakeKubernetes(session, served)
        return
    context, headers = trust(namespace)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield RealKubernetes(session, namespace)


pytestmark = pytest.mark.parametrize("namespace", ["fake"], indirect=True)


def terminated(pod: Object) -> Object:
    """How a pod's container ended."""
    found: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return found


async def test_a_job_runs_from_its_gate_to_its_condition(api: KubernetesApi) -> None:
    job = await api.make(command="echo '$HOME'; exit 3")
    pod = await api.pod_of()
    name, meta = pod["metadata"]["name"], pod["metadata"]
    assert meta["finalizers"] == ["batch.kubernetes.io/job-tracking"]
    assert meta["ownerReferences"][0]["uid"] == meta["labels"]["controller-uid"] == job["metadata"]["uid"]
    assert pod["status"]["conditions"][0]["reason"] == "SchedulingGated"
    assert "nodeName" not in pod["spec"]
    assert (await api.ask("GET", f"pods/{name}/log"))[0] == 204
    assert (await api.release(pod))[0] == 200
    pod = await api.phase(name, "Failed")
    ended = terminated(pod)
    assert [line.split()[0] for line in ended["message"].splitlines()] == ["started", "started_at", "exit", "ended_at"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert pod["spec"]["nodeName"]
    assert (await api.ask("GET", f"pods/{name}/log"))[1].splitlines()[1:] == [b"$HOME"]
    assert (await api.ended())["status"]["conditions"][-1]["type"] == "Failed"
    assert "finalizers" not in (await api.find("pods", name) or {})["metadata"]
    assert (await api.release(pod))[0] == 200  # late, and changes nothing


async def test_a_timeout_and_a_deadline_leave_their_traces(api: KubernetesApi) -> None:
    late = await api.started("sleep 60", timeout=1)
    pod = await api.phase(late, "Failed")
    assert "timeout\nexit 143\n" in terminated(pod)["message"]
    await api.delete("jobs", "one", propagationPolicy="Background")
    await api.gone()
    killed = await api.started()
    uid = (await api.find("pods", killed) or {})["metadata"]["uid"]
    assert (await api.patch("pods", killed, end_now(uid)))[0] == 200
    pod = await api.phase(killed, "Failed")
    assert (pod["status"]["reason"], terminated(pod)["exitCode"]) == ("DeadlineExceeded", 137)
    assert "exit" not in terminated(pod)["message"]
    assert (await api.patch("pods", killed, {"spec": {"activeDeadlineSeconds": 9}}))[0] == 422


async def test_lists_come_in_pages_of_one_moment(api: KubernetesApi) -> None:
    for name in ("a", "b", "c"):
        await api.make(name)
    first = await api.objects("jobs", limit="2")
    await api.make("d")
    assert [one["metadata"]["name"] for one in first["items"]] == ["a", "b"]
    assert "kind" not in first["items"][0]
    rest = await api.objects("jobs", **{"limit": "2", "continue": first["metadata"]["continue"]})
    assert [one["metadata"]["name"] for one in rest["items"]] == ["c"]
    assert rest["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}
    slim = (await api.ask("GET", "jobs", headers={"Accept": SLIM.format("List")}, labelSelector="sandboxId=c"))[1]
    assert (slim["kind"], slim["items"][0]["kind"]) == ("PartialObjectMetadataList", "PartialObjectMetadata")
    assert [one["metadata"]["name"] for one in slim["items"]] == ["c"]
    assert "spec" not in slim["items"][0]
    for selector, count in {"sandboxId": 4, "!sandboxId": 0, "sandboxId!=a,attempt=1": 3}.items():
        assert len((await api.objects("jobs", labelSelector=selector))["items"]) == count


async def test_a_watch_goes_on_from_a_version_and_tells_of_deletions(api: KubernetesApi) -> None:
    version = (await api.objects("pods"))["metadata"]["resourceVersion"]
    slim = {"Accept": SLIM.format("")}
    await api.make()
    name = (await api.pod_of())["metadata"]["name"]
    async with api.watch("pods", version, slim, allowWatchBookmarks="true", timeoutSeconds="5") as line:
        added = await line()
        assert (added["type"], added["object"]["kind"]) == ("ADDED", "PartialObjectMetadata")
        assert "spec" not in added["object"]
        note = {"metadata": {"annotations": {"x": "y"}}}
        noted, again = [(await api.patch("pods", name, note))[1]["metadata"] for _ in range(2)]
        assert noted["resourceVersion"] == again["resourceVersion"]  # the same once more changes nothing
        await api.delete("jobs", "one", propagationPolicy="Background")
        events = [added, await line()]
        while events[-1] is not None:
            events.append(await line())
    kinds = [event["type"] for event in events[:-1]]
    assert [kind for kind in kinds if kind != "MODIFIED"] == ["ADDED", "DELETED", "BOOKMARK"]
    assert noted["resourceVersion"] in [event["object"]["metadata"]["resourceVersion"] for event in events[1:-1]]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events[:-1]]
    assert versions == sorted(versions)
    before_its_end = str(versions[kinds.index("DELETED") - 1])
    async with api.watch("pods", before_its_end, labelSelector="sandboxId=one") as line:
        assert (await line())["type"] == "DELETED"


async def test_a_version_that_is_forgotten_is_gone(api: KubernetesApi) -> None:
    async with api.watch("pods", await api.forgotten()) as line:
        error = (await line())["object"]
        assert await line() is None
    assert (error["kind"], error["reason"], error["code"]) == ("Status", "Expired", 410)


async def test_another_uid_is_a_conflict_and_a_taken_name_too(api: KubernetesApi) -> None:
    job = await api.make()
    other = {"uid": "another"}
    for status, answer in (
        await api.delete("jobs", "one", preconditions=other),
        await api.patch("jobs", "one", {"metadata": other}),
        await api.patch("jobs", "one", {"metadata": {"resourceVersion": "1"}}),
    ):
        assert (status, answer["reason"]) == (409, "Conflict")
    status, answer = await api.ask("POST", "jobs", body=job_of("one", ""))
    assert (status, answer["reason"]) == (409, "AlreadyExists")
    assert answer["message"] == 'jobs.batch "one" already exists'
    assert (await api.ask("POST", "jobs", body=job_of("two", ""), dryRun="All"))[0] == 201
    status, answer = await api.ask("GET", "jobs", "two")
    assert (status, answer["details"]) == (404, {"name": "two", "group": "batch", "kind": "jobs"})
    wanted = {"uid": job["metadata"]["uid"]}
    assert (await api.delete("jobs", "one", preconditions=wanted))[0] == 200


async def test_what_no_job_can_be_is_refused_with_every_cause(api: KubernetesApi) -> None:
    status, answer = await api.ask("POST", "jobs", body=job_of("Two", "") | {"spec": {}})
    assert (status, answer["reason"]) == (422, "Invalid")
    assert {cause["field"] for cause in answer["details"]["causes"]} == {
        "metadata.name",
        "spec.template.spec.containers",
        "spec.template.spec.restartPolicy",
    }


async def test_a_full_quota_refuses_a_job_before_its_name_does(api: KubernetesApi) -> None:
    await api.make()
    await api.limit(jobs=1)
    status, answer = await api.ask("POST", "jobs", body=job_of("two", ""))
    assert (status, answer["reason"]) == (403, "Forbidden")
    assert answer["message"].endswith("used: count/jobs.batch=1, limited: count/jobs.batch=1")
    status, answer = await api.ask("POST", "jobs", body=job_of("one", ""))
    assert (status, answer["reason"]) == (403, "Forbidden")


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
async def test_a_deleted_job_takes_its_pod_along_or_leaves_it(api: KubernetesApi, policy: str) -> None:
    pod = await api.started()
    version = (await api.objects("pods"))["metadata"]["resourceVersion"]
    assert (await api.delete("jobs", "one", propagationPolicy=policy))[0] == 200
    if policy == "Background":
        assert await api.find("jobs", "one") is None

    async def job_is_gone() -> bool:
        return await api.find("jobs", "one") is None

    await api.until("the Job gone", job_is_gone)
    if policy == "Orphan":
        assert "ownerReferences" not in (await api.find("pods", pod) or {})["metadata"]
        return
    await api.gone()
    async with api.watch("pods", version) as line:
        events: list[Any] = [await line()]
        while events[-1]["type"] != "DELETED":
            events.append(await line())
    assert any("deletionTimestamp" in one["object"]["metadata"] for one in events if one["type"] == "MODIFIED")
    assert terminated(events[-1]["object"])["exitCode"] == 137


async def test_a_gated_pod_that_is_deleted_never_starts_and_fails_its_job(api: KubernetesApi) -> None:
    await api.make()
    pod = await api.pod_of()
    await api.delete("pods", pod["metadata"]["name"])
    await api.release(pod)
    assert (await api.ended())["status"]["conditions"][-1]["type"] == "Failed"
    assert not (await api.objects("pods"))["items"]


async def test_a_pod_that_goes_uncounted_is_replaced_and_the_quota_holds_pods_back(api: KubernetesApi) -> None:
    await api.make()
    first = await api.pod_of()
    await api.limit(pods=1)
    await api.make("two")
    assert not await api.pods("two")
    await api.remove(first["metadata"]["name"])

    async def another() -> bool:
        found = [*await api.pods("one"), *await api.pods("two")]
        return [one["metadata"]["uid"] for one in found] not in ([], [first["metadata"]["uid"]])

    await api.until("another pod", another)
    await api.limit(pods=3)
    await api.pod_of("one")
    await api.pod_of("two")
    await api.delete("jobs", "one", propagationPolicy="Background")

    async def gone() -> bool:
        return not await api.pods("one")

    await api.until("its pods gone", gone)


async def test_an_eviction_leaves_its_trace(api: KubernetesApi) -> None:
    pod = await api.started()
    async with api.watch("pods", (await api.find("pods", pod) or {})["metadata"]["resourceVersion"]) as line:
        await api.evict(pod)
        last = await line()
        while last["type"] != "DELETED":
            last = await line()
    conditions = {one["type"]: one for one in last["object"]["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "EvictionByEvictionAPI"
    assert last["object"]["status"]["phase"] == "Failed"
    assert (await api.ended())["status"]["conditions"][-1]["type"] == "Failed"


async def test_a_job_that_is_recorded_goes_in_time_with_its_pod(api: KubernetesApi) -> None:
    job = await api.make()
    await api.release(await api.pod_of())
    await api.ended()
    body = recorded(job["metadata"]["uid"], 0)
    body["spec"]["ttlSecondsAfterFinished"] = 2
    assert (await api.patch("jobs", "one", body))[0] == 200
    assert (await api.find("jobs", "one") or {})["metadata"]["annotations"][RECORDED] == "0"
    await api.gone()


async def test_logs_are_raw_and_their_end_can_be_asked_for(api: KubernetesApi) -> None:
    log = b"\xff\x00\n" + b"x" * 3_000_000 + b"\nlast\nunended"
    pod = await api.writes(log)
    found = (await api.ask("GET", f"pods/{pod}/log"))[1]
    assert found.partition(b"\n")[2] == log
    assert found.startswith(b"# sandbox-")
    assert (await api.ask("GET", f"pods/{pod}/log", tailLines="2"))[1] == b"last\nunended"
    await api.remove(pod)
    assert (await api.ask("GET", f"pods/{pod}/log"))[0] == 404


async def test_there_is_no_log_of_what_waits_for_its_image(api: KubernetesApi) -> None:
    pod = await api.unpullable()
    status, answer = await api.ask("GET", f"pods/{pod}/log")
    assert status == 400
    assert "is waiting to start" in answer["message"]
