"""What a wait asks the engine and the cluster, and what it does where they do not answer as they should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from infra.errors import NotReadyError
from infra.waiting import cluster as waiting_cluster
from infra.waiting import engine as waiting_engine
from infra.waiting import readiness as waiting
from infra.waiting.cluster import ClusterWaits
from infra.waiting.engine import EngineWaits
from tests.support.canned import Canned, canned
from tests.support.kubeconfig import kubeconfig, use_kubeconfig

CONTAINER = {"name": "it-app", "id": "c1"}
WORKLOAD = {"kind": "Deployment", "namespace": "n", "name": "app", "uid": "d", "generation": 1}
APPS, CORE = "GET /apis/apps/v1/namespaces/n", "GET /api/v1/namespaces/n"
BATCH = "GET /apis/batch/v1/namespaces/n"
SELECTOR = {"matchLabels": {"app": "it"}}


def frame(words: str) -> bytes:
    """As an engine sends a line of a log."""
    return b"\x02\0\0\0" + len(words).to_bytes(4, "big") + words.encode()


def shown(status: str, code: int = 0, health: str = "starting", restarts: int = 0) -> dict[str, Any]:
    """As an engine shows a container."""
    state = {"Status": status, "Running": status == "running", "OOMKilled": False, "ExitCode": code, "Error": ""}
    return {"RestartCount": restarts, "State": state | {"Health": {"Status": health, "Log": []}}}


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told; no wait is long."""
    words: list[str] = []
    monkeypatch.setattr(waiting, "PAUSE_SECONDS", 0.0)
    for module in (waiting_engine, waiting_cluster):
        monkeypatch.setattr(module, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(pulumi.log, "info", words.append)
    return words


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    """An engine with nothing on it."""
    with canned({}) as served:
        monkeypatch.setenv("DOCKER_HOST", served.url.replace("http", "tcp"))
        yield served


def has(engine: Canned, container: dict[str, Any], log: bytes = b"") -> None:
    """Puts the container there."""
    engine.answers |= {"GET /containers/c1/json": container, "GET /containers/c1/logs": log}


def test_a_healthy_container_is_waited_for_no_longer(engine: Canned) -> None:
    has(engine, shown("running", health="healthy"))
    asyncio.run(EngineWaits().healthy(CONTAINER))


def test_a_containers_last_words_are_the_reason(engine: Canned, told: list[str]) -> None:
    has(engine, shown("exited", 1), frame("run: no such ") + frame("setting\n"))
    with pytest.raises(NotReadyError, match=r"container it-app is not ready: it ended \(exit code 1\).*run: no such"):
        asyncio.run(EngineWaits().healthy(CONTAINER))
    assert told == []  # the error says it


def test_a_migration_that_failed_before_is_started_once_more(engine: Canned) -> None:
    has(engine, shown("exited", 1), frame("migrate: no UTF8\n"))
    engine.answers["POST /containers/c1/start"] = {}
    with pytest.raises(NotReadyError, match=r"it ended \(exit code 1\): migrate: no UTF8"):
        asyncio.run(EngineWaits().ended_well(CONTAINER))
    assert [line for line in engine.asked if "start" in line] == ["POST /containers/c1/start"]


def test_a_migration_that_has_ended_well_is_not_started_again(engine: Canned) -> None:
    has(engine, shown("exited"))
    asyncio.run(EngineWaits().ended_well(CONTAINER))
    assert not [line for line in engine.asked if line.startswith("POST")]


def test_a_container_that_is_gone_is_said_to_be(engine: Canned) -> None:
    for wait in (EngineWaits().healthy, EngineWaits().ended_well):
        with pytest.raises(NotReadyError, match="it no longer exists: `pulumi up --refresh --run-program`"):
            asyncio.run(wait(CONTAINER))


def test_an_engine_that_fails_or_goes_away_is_named(engine: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answers["GET /containers/c1/json"] = 500
    with pytest.raises(NotReadyError, match="the Docker engine says: status 500"):
        asyncio.run(EngineWaits().healthy(CONTAINER))
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(NotReadyError, match=r"the Docker engine at tcp://127\.0\.0\.1:1 does not answer"):
        asyncio.run(EngineWaits().healthy(CONTAINER))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    """A cluster with nothing on it."""
    with canned({}) as served:
        found = kubeconfig("it", {"server": served.url}, "t", current=False)
        use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(found))
        yield served


def asks(made: dict[str, Any]) -> None:
    """Waits for it."""
    asyncio.run(ClusterWaits("it").ready(made))


def workload(replicas: int, volumes: list[dict[str, Any]] | None = None, **status: Any) -> dict[str, Any]:
    """As the API shows one."""
    template = {"spec": {"volumes": volumes or []}}
    metadata = {"uid": "d", "generation": 1, "annotations": {"deployment.kubernetes.io/revision": "1"}}
    seen = {"observedGeneration": 1, "replicas": replicas} | status
    spec = {"replicas": replicas, "selector": SELECTOR, "template": template}
    return {"metadata": metadata, "spec": spec, "status": seen}


def pod(state: dict[str, Any], restarts: int, owner: str) -> dict[str, Any]:
    """As the API shows one."""
    one = {"name": "c", "image": "r/app:1", "state": state, "restartCount": restarts, "ready": False}
    metadata = {"name": "p", "uid": "p", "ownerReferences": [{"uid": owner}], "labels": {}}
    return {"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [one]}}


def happened(reason: str, message: str, year: int, uid: str) -> dict[str, Any]:
    """As the API shows an event."""
    about = {"involvedObject": {"uid": uid}, "metadata": {"creationTimestamp": f"{year}-01-01T00:00:00Z"}}
    return about | {"reason": reason, "message": message, "lastTimestamp": f"{year}-01-01T00:00:00Z"}


def test_a_pods_last_words_are_the_reason(cluster: Canned) -> None:
    newest = {
        "metadata": {
            "uid": "rs",
            "ownerReferences": [{"uid": "d"}],
            "annotations": {"deployment.kubernetes.io/revision": "1"},
        }
    }
    crashed = pod({"waiting": {"reason": "CrashLoopBackOff"}}, 0, "rs")
    cluster.answers |= {
        f"{APPS}/deployments/app": workload(1),
        f"{APPS}/replicasets": {"items": [newest]},
        f"{CORE}/pods": {"items": [crashed]},
        f"{CORE}/events": {"items": []},
        f"{CORE}/pods/p/log": b"unable to retrieve container logs for containerd://1",
    }

    def later(line: str) -> tuple[int, bytes]:
        if "log" in line:
            cluster.answers[f"{CORE}/pods/p/log"] = b"12:00 error   no such host\n"
        crashed["status"]["containerStatuses"][0]["restartCount"] += 1 if line.startswith(f"{APPS}/deploy") else 0
        return Canned.answer(cluster, line)

    cluster.answer = later  # type: ignore[method-assign]
    with pytest.raises(
        NotReadyError, match=r"Deployment app is not ready: pod p ended 3 times .*: 12:00 error   no such host"
    ):
        asks(WORKLOAD)
    assert f"{CORE}/pods/p/log?container=c&tailLines=6&previous=true" in cluster.asked


def test_what_was_refused_before_the_wait_began_is_no_reason(
    cluster: Canned, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = happened("FailedCreate", "quota of yesterday", 2020, "d")
    new = happened("FailedCreate", "quota of today", 2999, "d") | {"lastTimestamp": None}
    new["eventTime"] = "2999-01-01T00:00:00Z"
    cluster.answers |= {
        f"{APPS}/statefulsets/app": workload(1),
        f"{CORE}/pods": {"items": []},
        f"{CORE}/events": {"items": [new, old]},
    }

    def mended(words: str) -> None:
        told.append(words)
        cluster.answers[f"{APPS}/statefulsets/app"] = workload(0)

    monkeypatch.setattr(pulumi.log, "info", mended)
    asks(WORKLOAD | {"kind": "StatefulSet"})
    assert told == ["waiting for StatefulSet app (0 s): its pods are rejected: quota of today"]


def test_without_a_right_to_events_and_logs_the_rest_is_told(cluster: Canned) -> None:
    ended = {"terminated": {"exitCode": 1, "message": "migrate: no host"}}
    failed = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
    cluster.answers |= {
        f"{BATCH}/jobs/app": workload(1, [{"name": "tmp"}, {"persistentVolumeClaim": {"claimName": "data"}}], **failed),
        f"{CORE}/pods": {"items": [pod(ended, 0, "d")]},
        f"{CORE}/persistentvolumeclaims/data": {"metadata": {"name": "data", "uid": "c"}},
        f"{CORE}/events": 403,
    }
    with pytest.raises(NotReadyError, match="Job app is not ready: migrate: no host"):
        asks(WORKLOAD | {"kind": "Job"})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (404, "it no longer exists: `pulumi up --refresh --run-program`"),
        (500, r"the cluster at http://\S+ \(context it\) says: status 500 \(500\)"),
        (b"<html>", r"the cluster at http://\S+ \(context it\) answers with something other than JSON"),
    ],
)
def test_a_cluster_that_does_not_answer_as_it_should_is_named(cluster: Canned, answer: Any, words: str) -> None:
    cluster.answers[f"{APPS}/deployments/app"] = answer
    with pytest.raises(NotReadyError, match=f"Deployment app is not ready: {words}"):
        asks(WORKLOAD)


def test_events_that_may_not_be_read_are_none_but_a_cluster_in_trouble_is_told(cluster: Canned) -> None:
    cluster.answers |= {
        f"{APPS}/statefulsets/app": workload(1),
        f"{CORE}/pods": {"items": []},
        f"{CORE}/events": 500,
    }
    with pytest.raises(NotReadyError, match="says: status 500"):
        asks(WORKLOAD | {"kind": "StatefulSet"})


def test_what_is_remembered_as_ready_is_made_by_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: dict[str, Any] = {}
    monkeypatch.setattr(pulumi, "ResourceHook", lambda name, hook: hooks.setdefault(name, hook))
    monkeypatch.setattr(pulumi, "Stash", lambda name, input, opts: (name, input, opts.hooks))
    waited: list[Any] = []

    async def wait(made: Any) -> None:
        waited.append(made)

    remembered: Any = waiting.once_ready("app", {"id": "c1"}, wait, pulumi.ResourceOptions())
    name, made, bound = remembered
    assert (name, made) == ("app-ready", {"id": "c1"})
    assert bound.before_create == bound.before_update == [hooks["wait for the app"]]
    args = pulumi.ResourceHookArgs("urn", "", "app-ready", "pulumi:index:Stash", {"input": {"id": "c2"}})
    asyncio.run(hooks["wait for the app"](args))
    assert waited == [{"id": "c2"}]
