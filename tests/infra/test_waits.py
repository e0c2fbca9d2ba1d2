"""A wait tells why it waits, and ends as soon as nothing can come of it. Samples are of a real engine and cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pytest

from infra.waiting.container_verdict import SeenContainer, ended_well, healthy, last_words
from infra.waiting.readiness import Unready, until_ready
from infra.waiting.workload_verdict import SeenWorkload, newest_set, of_newest, speaker, verdict

NO_IMAGE = (
    "rpc error: code = NotFound desc = failed to pull and unpack image "
    '"localhost:5000/nope:1": failed to resolve reference "localhost:5000/nope:1": localhost:5000/nope:1: not found'
)
SILENT_REGISTRY = 'failed to do request: Head "https://r.example/v2/app/manifests/1": dial tcp: i/o timeout'


@dataclass
class Clock:
    """Time that passes by pauses alone, and what was told at which second."""

    at: float = 0.0
    told: list[tuple[float, str]] = field(default_factory=list)

    async def pause(self, seconds: float) -> None:
        self.at += seconds

    def tell(self, words: str) -> None:
        self.told.append((self.at, words))


def wait(looks: Sequence[tuple[float, Unready | None]], longest: float = 600.0) -> tuple[Clock, str]:
    """Waits for what each look shows until that second; what was told, and the error (or `ready`)."""
    clock = Clock()

    async def look() -> Unready | None:
        return next((found for until, found in looks if clock.at < until), None)

    try:
        asyncio.run(until_ready("it", look, longest, now=lambda: clock.at, pause=clock.pause, tell=clock.tell))
    except pulumi.RunError as error:  # which Pulumi shows without a stack trace
        return clock, str(error)
    return clock, "ready"


def test_a_reason_is_told_once_and_again_only_after_a_minute() -> None:
    clock, ended = wait([(130, Unready("node", "no room")), (140, Unready("image", "it is pulled"))])
    assert ended == "ready"
    assert clock.told == [
        (0, "waiting for it (0 s): no room"),
        (60, "waiting for it (60 s): no room"),
        (120, "waiting for it (120 s): no room"),
        (130, "waiting for it (130 s): it is pulled"),
    ]


def test_other_words_for_the_same_reason_are_not_told_at_each_look() -> None:
    growing = [(second, Unready("unready", f"line {second}")) for second in range(1, 40)]
    assert [at for at, _ in wait(growing)[0].told] == [0, 15, 30]


def test_what_every_start_says_is_told_only_where_it_lasts() -> None:
    starts = Unready("starts", "it starts", quiet=10)
    assert wait([(9, starts)])[0].told == []
    assert wait([(11, starts)])[0].told == [(10, "waiting for it (10 s): it starts")]


@pytest.mark.parametrize(("patience", "after"), [(0.0, 0.0), (20.0, 20.0)])
def test_what_cannot_pass_ends_the_wait_once_its_patience_is_over(patience: float, after: float) -> None:
    clock, ended = wait([(900, Unready("image", "no such image", patience))])
    assert ended == "it is not ready: no such image"
    assert clock.at == after


def test_patience_begins_anew_with_another_reason() -> None:
    looks = [(15, Unready("one", "a", 20)), (30, Unready("other", "b", 20))]
    assert wait(looks)[1] == "ready"


def test_at_the_very_end_the_last_reason_is_the_error() -> None:
    assert wait([(900, Unready("node", "no room"))], longest=300)[1] == "it is not ready after 300 s: no room"


def container(status: str = "running", restarts: int = 0, lines: Sequence[str] = (), **state: Any) -> SeenContainer:
    """As an engine shows one."""
    shown = {
        "Status": status,
        "Running": status == "running",
        "Restarting": status == "restarting",
        "OOMKilled": False,
        "ExitCode": 0,
        "Error": "",
        "Health": {"Status": "starting", "FailingStreak": 0, "Log": []},
    }
    return SeenContainer({"State": shown | state, "RestartCount": restarts}, lines)


def check(status: str, code: int = 0, output: str = "") -> dict[str, Any]:
    """Health as an engine shows it."""
    return {"Health": {"Status": status, "FailingStreak": 1, "Log": [{"ExitCode": code, "Output": output}]}}


NO_RIGHT = "run: no right to use the Docker engine (Permission denied): join the group that owns its socket"
CONTAINERS: list[tuple[SeenContainer, str | None, float | None]] = [
    (container(**check("healthy")), None, None),
    (container(), "it runs, and has not passed its health check yet: its log is empty", None),
    (
        container(**check("unhealthy", 1, "the database does not answer\n"), lines=["12:00 info    up"]),
        "it runs, and its health check fails (the database does not answer): 12:00 info    up",
        None,
    ),
    (container("restarting", 1, [NO_RIGHT], ExitCode=1), f"it ended, and is started again: {NO_RIGHT}", None),
    (container("running", 1, [NO_RIGHT]), f"it ended, and is started again: {NO_RIGHT}", None),
    (container("restarting", 2, [NO_RIGHT], ExitCode=1), f"it ended (exit code 1), again and again: {NO_RIGHT}", 0),
    (
        container("exited", ExitCode=137, OOMKilled=True),
        "it ended (out of memory), and is not started again: its log is empty",
        0,
    ),
    (container("created", Error="no such file"), "it was not started: no such file", 10),
    (container("created"), "it was not started: the engine does not say why", 10),
]


@pytest.mark.parametrize(("seen", "words", "patience"), CONTAINERS)
def test_a_container_is_judged_by_its_state_its_check_and_its_last_words(
    seen: SeenContainer, words: str | None, patience: float | None
) -> None:
    found = healthy(seen)
    assert (found and found.words) == words
    if found is not None and patience is not None:
        assert found.patience == patience


def test_restarts_before_the_wait_began_count_for_nothing() -> None:
    seen = container("running", 70, **check("starting"))
    found = healthy(SeenContainer(seen.shown, [], restarts_before=70))
    assert found is not None
    assert found.kind == "unhealthy"


ENDS: list[tuple[SeenContainer, str | None]] = [
    (container("exited"), None),
    (container("created"), "it was not started: the engine does not say why"),
    (container(lines=["migrate: waiting"]), "it runs: migrate: waiting"),
    (container("exited", ExitCode=1, lines=["migrate: no UTF8"]), "it ended (exit code 1): migrate: no UTF8"),
]


@pytest.mark.parametrize(("seen", "words"), ENDS)
def test_a_container_that_is_to_end_says_in_its_own_words_why_it_failed(seen: SeenContainer, words: str | None) -> None:
    found = ended_well(seen)
    assert (found and found.words) == words


def test_last_words_are_one_line_without_repeats_and_steer_no_terminal() -> None:
    lines = ["", "one\x1b[2J", json.dumps({"level": "info", "message": "two"}), "{}", "two", "one\x1b[2J"]
    assert last_words(lines) == "one\\x1b[2J / two / {}"
    assert len(last_words(["x" * 5000])) == 601


def test_last_words_name_the_error_of_a_controllers_event() -> None:
    event = {"message": "engine unavailable, retrying", "loop": "_observe_loop", "error": "no right to use it"}
    assert last_words([json.dumps(event)]) == "engine unavailable, retrying: no right to use it"


def pod(name: str = "app-1", owner: str = "rs-2", **status: Any) -> dict[str, Any]:
    """As an API shows one."""
    metadata = {"name": name, "uid": f"uid-{name}", "labels": {}, "ownerReferences": [{"uid": owner}]}
    return {"metadata": metadata, "status": {"phase": "Pending"} | status}


def says(state: dict[str, Any], restarts: int = 0, *, ready: bool = False, **more: Any) -> dict[str, Any]:
    """The status of a pod whose one container is so."""
    one = {"name": "c", "image": "localhost:5000/nope:1", "state": state, "restartCount": restarts, "ready": ready}
    conditions = [{"type": "Ready", "status": str(ready)}, {"type": "PodScheduled", "status": "True"}]
    return {"containerStatuses": [one | more], "conditions": conditions}


def waits_for(reason: str, message: str | None = None) -> dict[str, Any]:
    """A container's state before it runs."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def deployment(replicas: int = 1, **status: Any) -> dict[str, Any]:
    """As an API shows one whose newest ReplicaSet is rs-2."""
    metadata = {"uid": "d", "generation": 2, "annotations": {"deployment.kubernetes.io/revision": "2"}}
    seen = {"observedGeneration": 2, "replicas": replicas} | status
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}, "status": seen}


def job(**status: Any) -> dict[str, Any]:
    """As an API shows one."""
    return {"kind": "Job", "metadata": {"uid": "j", "generation": 1}, "spec": {"parallelism": 1}, "status": status}


def event(reason: str, message: str, uid: str = "uid-app-1") -> dict[str, Any]:
    """As an API shows one."""
    return {"reason": reason, "message": message, "involvedObject": {"uid": uid}}


RUNS = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
ENDED = {"terminated": {"exitCode": 1, "reason": "Error"}}
LAST: dict[str, Any] = {"lastState": ENDED}
FORBIDDEN = 'Error creating: pods "app-6f-x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=6'
CLAIM = {"metadata": {"name": "data", "uid": "c"}, "status": {"phase": "Pending"}}
NO_CLASS = event("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found', "c")
NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
DATABASE = {
    "kind": "StatefulSet",
    "metadata": {"uid": "s", "generation": 1},
    "spec": {"replicas": 1},
    "status": {"observedGeneration": 1, "replicas": 1},
}
WORKLOADS: list[tuple[str, SeenWorkload, str | None, float]] = [
    ("ready", SeenWorkload(deployment(), [pod(**says(RUNS, ready=True))]), None, 0),
    ("nothing is wanted", SeenWorkload(deployment(0), []), None, 0),
    (
        "not seen yet",
        SeenWorkload(deployment(observedGeneration=1), [pod(**says(RUNS, ready=True))]),
        "its controller has not seen it yet",
        float("inf"),
    ),
    (
        "an old pod is left",
        SeenWorkload(
            deployment(replicas=1) | {"status": {"observedGeneration": 2, "replicas": 2}},
            [pod(**says(RUNS, ready=True))],
        ),
        "pods of the previous revision are still ending",
        float("inf"),
    ),
    ("too few", SeenWorkload(deployment(2), [pod(**says(RUNS, ready=True))]), "1 of 2 pods are ready", float("inf")),
    (
        "no such image",
        SeenWorkload(deployment(), [pod(**says(waits_for("ErrImagePull", NO_IMAGE)))]),
        f"pod app-1 cannot pull image localhost:5000/nope:1: {NO_IMAGE}",
        0,
    ),
    (
        "no such image, said by an event",
        SeenWorkload(
            deployment(),
            [pod(**says(waits_for("ImagePullBackOff", 'Back-off pulling image "localhost:5000/nope:1"')))],
            [event("Failed", f"Failed to pull image: {NO_IMAGE}"), event("Failed", "Error: ImagePullBackOff")],
        ),
        f"pod app-1 cannot pull image localhost:5000/nope:1: Failed to pull image: {NO_IMAGE}",
        0,
    ),
    (
        "the registry is silent",
        SeenWorkload(deployment(), [pod(**says(waits_for("ErrImagePull", SILENT_REGISTRY)))]),
        f"pod app-1 cannot pull image localhost:5000/nope:1: {SILENT_REGISTRY}",
        120,
    ),
    (
        "no name of an image",
        SeenWorkload(deployment(), [pod(**says(waits_for("InvalidImageName")))]),
        "pod app-1 cannot pull image localhost:5000/nope:1: InvalidImageName",
        0,
    ),
    (
        "root",
        SeenWorkload(deployment(), [pod(**says(waits_for("CreateContainerConfigError", "image will run as root")))]),
        "pod app-1 cannot start its container: image will run as root",
        20,
    ),
    (
        "ended once",
        SeenWorkload(deployment(), [pod(**says(RUNS, 1, **LAST))], lines=["no such host"]),
        "pod app-1 ended once (exit code 1): no such host",
        float("inf"),
    ),
    (
        "ends again and again",
        SeenWorkload(deployment(), [pod(**says(waits_for("CrashLoopBackOff"), 2, **LAST))], lines=["no such host"]),
        "pod app-1 ended 3 times (exit code 1): no such host",
        0,
    ),
    (
        "ended often, before this wait",
        SeenWorkload(
            deployment(), [pod(**says(waits_for("CrashLoopBackOff"), 2, **LAST))], exits_before={"uid-app-1": 3}
        ),
        "pod app-1 ended 3 times (exit code 1): its log is empty",
        float("inf"),
    ),
    (
        "killed for its memory, in the runtime's words",
        SeenWorkload(
            deployment(), [pod(**says({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "big"}}))]
        ),
        "pod app-1 ended once (OOMKilled): big",
        float("inf"),
    ),
    (
        "a quota",
        SeenWorkload(deployment(), [], [event("FailedCreate", f"(combined from similar events): {FORBIDDEN}", "rs-2")]),
        "its pods are rejected: Error creating: pods are forbidden: exceeded quota: q, requested: pods=1, used: pods=6",
        20,
    ),
    (
        "no such class",
        SeenWorkload(DATABASE, [pod(conditions=[NO_NODE])], [NO_CLASS], [CLAIM]),
        'its volume data is not provisioned: storageclass.storage.k8s.io "fast" not found',
        20,
    ),
    (
        "a volume that waits for its pod",
        SeenWorkload(DATABASE, [pod(conditions=[NO_NODE])], [], [CLAIM]),
        "pod app-1 is not scheduled: 0/1 nodes are available",
        float("inf"),
    ),
    (
        "no scheduler",
        SeenWorkload(deployment(), [pod(conditions=[{"type": "PodScheduled", "status": "False"}])]),
        "pod app-1 is not scheduled: no scheduler has seen it",
        float("inf"),
    ),
    (
        "a volume that cannot be mounted",
        SeenWorkload(
            DATABASE,
            [pod(**says(waits_for("ContainerCreating")))],
            [event("FailedMount", 'secret "x" not found')],
            [CLAIM | {"status": {"phase": "Bound"}}],
        ),
        'pod app-1 does not start: secret "x" not found',
        float("inf"),
    ),
    (
        "a node's refusal",
        SeenWorkload(deployment(), [pod(phase="Failed", reason="Evicted", message="The node was low on memory")]),
        "pod app-1 failed: The node was low on memory",
        float("inf"),
    ),
    (
        "not ready",
        SeenWorkload(deployment(), [pod(**says(RUNS, started=True))], lines=["the engine does not answer"]),
        "pod app-1 runs, and is not ready: the engine does not answer",
        120,
    ),
    (
        "recovers",
        SeenWorkload(DATABASE, [pod(**says(RUNS, started=False))], lines=["redo in progress"]),
        "pod app-1 runs, and is not ready: redo in progress",
        float("inf"),
    ),
    ("a Job that has succeeded", SeenWorkload(job(succeeded=1), []), None, 0),
    (
        "a Job that has ended well, and does not know it yet",
        SeenWorkload(job(active=1), [pod(**says({"terminated": {"exitCode": 0, "reason": "Completed"}}))]),
        "it runs",
        float("inf"),
    ),
    ("a Job that runs", SeenWorkload(job(active=1), [pod(**says(RUNS, ready=True))]), "it runs", float("inf")),
    (
        "a Job that tries again",
        SeenWorkload(job(active=1), [pod(**says({"terminated": {"exitCode": 1, "message": "migrate: no host\n"}}))]),
        "attempt 1 failed: migrate: no host",
        30,
    ),
    (
        "a Job that has failed",
        SeenWorkload(
            job(conditions=[{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]),
            [pod(**says({"terminated": {"exitCode": 1, "message": "migrate: no host\n"}}))],
        ),
        "migrate: no host",
        0,
    ),
    (
        "a Job whose pods are gone",
        SeenWorkload(job(conditions=[{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]), []),
        "DeadlineExceeded",
        0,
    ),
]


@pytest.mark.parametrize(
    ("seen", "words", "patience"), [one[1:] for one in WORKLOADS], ids=[one[0] for one in WORKLOADS]
)
def test_a_workload_is_judged_by_the_words_of_the_cluster_and_its_containers(
    seen: SeenWorkload, words: str | None, patience: float
) -> None:
    found = verdict(seen)
    assert (found and found.words) == words
    if found is not None:
        assert found.patience == patience


def test_only_pods_of_the_newest_revision_count() -> None:
    sets = [
        {
            "metadata": {
                "uid": f"rs-{revision}",
                "annotations": {"deployment.kubernetes.io/revision": revision},
                "ownerReferences": [{"uid": "d"}],
            }
        }
        for revision in ("1", "2")
    ]
    old, new = pod("old", "rs-1"), pod("new", "rs-2")
    assert of_newest(deployment(), sets, [old, new]) == [new]
    assert of_newest(deployment(), [], [old, new]) == []
    assert newest_set(deployment(), sets) == sets[1]

    old, new = pod("old", "s"), pod("new", "s")
    new["metadata"]["labels"]["controller-revision-hash"] = "h2"
    assert of_newest(DATABASE | {"status": {"updateRevision": "h2"}}, [], [old, new]) == [new]
    assert of_newest(job(), [], [pod(owner="j"), pod(owner="k")]) == [pod(owner="j")]


def test_the_log_that_is_read_is_of_the_container_in_trouble() -> None:
    good, again = pod("good", **says(RUNS, ready=True)), pod("again", **says(waits_for("CrashLoopBackOff"), 1))
    ended, slow = pod("ended", **says(ENDED, 1)), pod("slow", **says(RUNS))
    assert speaker([good, again]) == ("again", "c", True)
    assert speaker([good, ended]) == ("ended", "c", False)
    assert speaker([slow, good]) == ("slow", "c", False)
    assert speaker([good, pod("new", **says(waits_for("ContainerCreating")))]) is None
