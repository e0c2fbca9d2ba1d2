"""What pods' statuses mean: a table of pods as a real cluster told them, in `pods/`, and of a few that were made up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backends.kubernetes import pod_status
from controller.backends.kubernetes.manifest import GATE
from controller.backends.kubernetes.pod_cache import PodCache, pod_record
from controller.protocol.model import Key, ObservedRun, Phase, Reason, State

PODS = Path(__file__).parent / "pods"
KEY = Key(UUID("11111111-2222-3333-4444-555555555555"), 1)
STATES = {
    Reason.COMPLETED: State.SUCCEEDED,
    Reason.DEADLINE_EXCEEDED: State.TIMED_OUT,
    Reason.NODE_LOST: State.LOST,
}


@dataclass(frozen=True)
class Means:
    """What a pod is to be taken for; `words` are in its outcome's message, or in why it waits."""

    phase: Phase
    reason: Reason | None = None
    code: int | None = None
    words: str = ""
    timeout_reason: Reason | None = None
    permanent: bool = False
    state: State | None = None  # None: the one that its reason stands for


def ended(reason: Reason, code: int | None, words: str = "") -> Means:
    return Means(Phase.ENDED, reason, code, words)


def forgotten(reason: Reason, words: str) -> Means:
    """Its node ended it, and whether it had ended before nobody can tell."""
    return Means(Phase.ENDED, reason, None, words, state=State.LOST)


def waits(words: str, timeout_reason: Reason | None, *, permanent: bool = False) -> Means:
    return Means(Phase.STARTING, None, None, words, timeout_reason, permanent)


def never(words: str = "", timeout_reason: Reason | None = None, *, permanent: bool = False) -> Means:
    return Means(Phase.NEVER_STARTED, None, None, words, timeout_reason, permanent)


INERT, STARTING, RUNNING = Means(Phase.INERT), Means(Phase.STARTING), Means(Phase.RUNNING)
NO_IMAGE, PULL = "localhost:5000/nothing:here: not found", Reason.IMAGE_PULL_FAILED
BAD_NAME, NO_ROOM = "repository name (UPPER) must be lowercase", "Insufficient cpu"
GONE_NODE, TAINTED = "PodGC: node no longer exists", "Taint manager: deleting due to NoExecute taint"

SEEN = {
    # before its start
    "gated": INERT,
    "foreign_gate_left": waits("waits for the scheduling gates example.com/checked", None),
    "kueue_gate_left": waits("waits for the scheduling gates kueue.x-k8s.io/admission", None),
    "unschedulable": waits(NO_ROOM, Reason.UNSCHEDULABLE),
    "bound_to_a_node_that_never_started_it": STARTING,
    "image_absent_err_image_pull": waits(NO_IMAGE, PULL, permanent=True),
    "image_absent_image_pull_back_off": waits(NO_IMAGE, PULL, permanent=True),
    "image_tag_absent": waits("localhost:5000/busybox:nothing: not found", PULL, permanent=True),
    "image_name_invalid": waits(BAD_NAME, PULL, permanent=True),
    "registry_unreachable_err_image_pull": waits("connection refused", PULL),
    "registry_unreachable_image_pull_back_off": waits("connection refused", PULL),
    "made_up_pull_qps_exceeded": waits("pull QPS exceeded", PULL),
    "create_container_config_error": waits('secret "absent" not found', Reason.START_FAILED),
    # over, and never started
    "gated_pod_deleted": never(),
    "gated_job_deleted": never(),
    "gated_job_deleted_foreground": never(),
    "ungated_pod_deleted_before_scheduling": never(),
    "unschedulable_pod_deleted": never(),
    "image_absent_ended_by_our_kill": never(NO_IMAGE, PULL, permanent=True),
    "create_container_config_error_ended_by_our_kill": never('secret "absent" not found', Reason.START_FAILED),
    "node_had_no_room": forgotten(Reason.EVICTED, "OutOfcpu"),
    "made_up_node_shutdown_before_start": forgotten(Reason.EVICTED, "the node is shutting down"),
    # over, its start not known of or failed
    "image_not_pulled_pod_deleted": ended(Reason.DELETED, None, "deleted by somebody else"),
    "image_not_pulled_eviction_api": forgotten(Reason.EVICTED, "Eviction API: evicting"),
    "image_without_shell": ended(Reason.START_FAILED, None, "stat /bin/sh: no such file"),
    "node_gone_before_start": ended(Reason.NODE_LOST, None, GONE_NODE),
    "node_gone_before_start_deleted": ended(Reason.NODE_LOST, None, GONE_NODE),
    "node_gone_unstarted_after_taint": ended(Reason.NODE_LOST, None, GONE_NODE),
    # running
    "running": RUNNING,
    "running_being_deleted": RUNNING,
    "running_on_a_node_not_ready": RUNNING,
    "eviction_api_under_way": RUNNING,
    "no_execute_taint": RUNNING,  # its node is dead, and may yet come back
    "dead_node_tainted": RUNNING,
    # ended by itself
    "exit_0": ended(Reason.COMPLETED, 0),
    "exit_3": ended(Reason.NON_ZERO_EXIT, 3, "exited with 3"),
    "exit_137_by_itself": ended(Reason.NON_ZERO_EXIT, 137, "signal 9"),
    "killed_everything_else": ended(Reason.COMPLETED, 0),
    "exited_while_being_deleted": ended(Reason.NON_ZERO_EXIT, 4, "exited with 4"),
    "succeeded_without_termination_message": ended(Reason.COMPLETED, 0),
    # ended by its limits
    "timeout": ended(Reason.DEADLINE_EXCEEDED, None, "timeout_seconds = 1"),
    "oom_of_everything": ended(Reason.OOM_KILLED, 137, "memory_mib = 64"),
    "oom_of_a_child": ended(Reason.NON_ZERO_EXIT, 3, "memory_mib = 64"),
    "empty_dir_over_its_size": ended(Reason.EVICTED, 137, 'EmptyDir volume "work" exceeds the limit "16Mi"'),
    "ephemeral_storage_over_its_limit": ended(Reason.EVICTED, 137, "exceeds the total limit of containers 144Mi"),
    # ended from outside
    "running_ended_by_our_kill": ended(Reason.KILLED, 137, "from outside"),
    "running_pod_deleted": ended(Reason.DELETED, 137, "somebody else"),
    "running_pod_deleted_by_force": ended(Reason.DELETED, 137, "somebody else"),
    "running_job_deleted": ended(Reason.DELETED, 137, "somebody else"),
    "running_job_deleted_foreground": ended(Reason.DELETED, 137, "somebody else"),
    "eviction_api": ended(Reason.EVICTED, 137, "Eviction API: evicting"),
    "preempted": ended(Reason.EVICTED, 137, "higher priority pod"),
    "made_up_no_execute_taint_on_a_living_node": ended(Reason.EVICTED, 137, TAINTED),
    "made_up_node_shutdown_while_running": ended(Reason.EVICTED, 137, "imminent node shutdown"),
    # its node went away
    "node_gone_while_running": ended(Reason.NODE_LOST, None, GONE_NODE),
    "node_gone_while_running_deleted": ended(Reason.NODE_LOST, None, GONE_NODE),
    "node_gone_after_taint": ended(Reason.NODE_LOST, None, GONE_NODE),
    "node_gone_after_dead_node_taint": ended(Reason.NODE_LOST, None, GONE_NODE),
    "made_up_container_status_unknown": ended(Reason.NODE_LOST, None, "is unknown"),
}
# What a pod means that vanished with this as the last look; of one that was over, nothing else.
GONE = {
    "gated": never(),
    "foreign_gate_left": never(),
    "kueue_gate_left": never(),
    "unschedulable": never(),
    "no_execute_taint": ended(Reason.NODE_LOST, None, TAINTED),
    "dead_node_tainted": ended(Reason.NODE_LOST, None, TAINTED),
}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PODS / f"{name}.json").read_text())
    return found


def test_every_recorded_pod_is_in_the_table() -> None:
    assert {path.stem for path in PODS.glob("*.json")} == SEEN.keys()


@pytest.mark.parametrize("name", SEEN)
def test_a_recorded_pod_is_taken_for_what_it_is(name: str) -> None:
    check(pod_status.observed_run(recorded(name), KEY), SEEN[name])


@pytest.mark.parametrize("name", SEEN)
def test_a_recorded_pod_that_vanished_is_taken_for_what_it_was(name: str) -> None:
    if SEEN[name].phase in (Phase.ENDED, Phase.NEVER_STARTED):
        assert pod_status.last_observed_run(recorded(name), KEY) == pod_status.observed_run(recorded(name), KEY)
    elif name in GONE:
        check(pod_status.last_observed_run(recorded(name), KEY), GONE[name])
    else:
        assert pod_status.last_observed_run(recorded(name), KEY).phase is Phase.GONE


def check(found: ObservedRun, means: Means) -> None:
    assert found.phase is means.phase
    outcome = found.outcome
    if means.reason is None:
        assert outcome is None
        assert (found.timeout_reason, found.permanent) == (
            means.timeout_reason,
            means.permanent,
        ) or found.phase is Phase.NEVER_STARTED
        assert means.words in (found.waiting or "")
        return
    assert outcome is not None
    assert (outcome.reason, outcome.exit_code) == (means.reason, means.code)
    assert outcome.state is (means.state or STATES.get(means.reason, State.FAILED))
    assert means.words in (outcome.message or "")


@pytest.mark.parametrize("name", SEEN)
def test_a_recorded_pod_is_known_as_ours(name: str) -> None:
    pod = recorded(name)
    labels = pod["metadata"]["labels"]
    run = pod_record(pod, labels["installation"])
    assert run is not None
    assert run.observed.key == Key(UUID(labels["sandboxId"]), 1)
    assert run.job_uid == labels["batch.kubernetes.io/controller-uid"]
    assert run.deleting == ("deletionTimestamp" in pod["metadata"])
    assert pod_record(pod, str(UUID(int=0))) is None


def test_a_look_tells_when_and_where_it_ran_and_in_what() -> None:
    found = pod_status.observed_run(recorded("exit_3"), KEY)
    assert found.node == "lab"
    assert found.image_digest is not None
    assert "@sha256:" in found.image_digest
    assert found.started_at is not None
    assert found.ended_at is not None
    assert found.started_at <= found.ended_at
    running = pod_status.observed_run(recorded("running"), KEY)
    assert running.started_at is not None
    assert running.ended_at is None


def test_a_start_that_failed_has_no_time() -> None:
    assert pod_status.observed_run(recorded("image_without_shell"), KEY).started_at is None  # told as 1970


def test_a_container_that_ended_is_not_over_before_its_pod_says_why() -> None:
    pod = recorded("running_job_deleted")
    pod["status"]["phase"] = "Running"
    del pod["metadata"]["deletionTimestamp"]
    assert pod_status.observed_run(pod, KEY).phase is Phase.RUNNING
    told = recorded("exit_3")
    told["status"]["phase"] = "Running"
    expected = pod_status.observed_run(recorded("exit_3"), KEY)
    assert pod_status.observed_run(told, KEY) == expected  # what it wrote down is all there is to say


def with_message(message: str, reason: str = "ErrImagePull") -> ObservedRun:
    pod = recorded("registry_unreachable_err_image_pull")
    pod["status"]["containerStatuses"][0]["state"]["waiting"] = {"reason": reason, "message": message}
    return pod_status.observed_run(pod, KEY)


@pytest.mark.parametrize(
    "message",
    [
        'rpc error: code = NotFound desc = failed to resolve reference "r/x:1": r/x:1: not found',
        "pull access denied, repository does not exist or may require authorization: server message: "
        "insufficient_scope: authorization failed",
        "failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized",
        "no match for platform in manifest: not found",
        "reading manifest 1 in r/x: manifest unknown",
    ],
)
def test_an_image_that_will_never_come_is_not_waited_for(message: str) -> None:
    found = with_message(message)
    assert found.permanent
    assert found.timeout_reason is Reason.IMAGE_PULL_FAILED
    assert message in (found.waiting or "")


@pytest.mark.parametrize(
    "message",
    [
        'failed to do request: Head "https://r/v2/x": dial tcp: lookup r on 10.0.0.1:53: no such host',
        'failed to do request: Head "https://r/v2/x": dial tcp 10.0.0.1:443: i/o timeout',
        "unexpected status from HEAD request to https://r/v2/x/manifests/1: 503 Service Unavailable",
        "429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit",
        "failed to extract layer: write /var/lib/containerd/x: no space left on device",
        'failed to resolve reference "r/access-denied:1": failed to do request: dial tcp 10.0.0.1:443: i/o timeout',
        'Back-off pulling image "r/unauthorized/x:1": ErrImagePull: dial tcp 10.0.0.1:443: connection refused',
    ],
)
def test_an_image_that_may_yet_come_is_waited_for(message: str) -> None:
    found = with_message(message)
    assert found.phase is Phase.STARTING
    assert not found.permanent
    assert found.timeout_reason is Reason.IMAGE_PULL_FAILED


@pytest.mark.parametrize(("limit", "mib"), [("64Mi", 64), ("1Gi", 1024), ("1536Mi", 1536), ("1Ti", 1 << 20)])
def test_the_limit_is_told_as_it_was_asked_for(limit: str, mib: int) -> None:
    pod = recorded("oom_of_everything")
    pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = limit  # as the cluster writes it
    outcome = pod_status.observed_run(pod, KEY).outcome
    assert outcome is not None
    assert outcome.message == f"it was killed: it went over memory_mib = {mib}"


@pytest.mark.parametrize("reason", ["NodeAffinity", "OutOfcpu", "NodeShutdown"])
def test_what_was_seen_to_run_is_not_unstarted_where_its_restarted_node_rejects_it(reason: str) -> None:
    pod, runs = recorded("running"), PodCache()
    installation = pod["metadata"]["labels"]["installation"]
    pod["metadata"]["resourceVersion"] = "1"
    first = pod_record(pod, installation)
    assert first is not None
    runs.update(first)
    pod["metadata"]["resourceVersion"] = "2"  # a kubelet that starts admits its pods anew, and writes no more than this
    pod["status"] = {"phase": "Failed", "reason": reason, "message": "Pod was rejected", "startTime": None}
    second = pod_record(pod, installation)
    assert second is not None
    news = runs.update(second)
    assert news is not None
    assert news.phase is Phase.ENDED


def test_a_deletion_that_takes_too_long_is_known() -> None:
    pod = recorded("running_being_deleted")
    moment = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])
    assert pod_status.overdue(pod, moment) == 0
    assert pod_status.overdue(recorded("running"), datetime.now(UTC)) is None


def test_a_pod_without_an_owner_has_none() -> None:
    pod = recorded("running")
    assert pod_status.owner(pod)
    pod["metadata"]["ownerReferences"][0]["controller"] = False
    assert pod_status.owner(pod) == ""
    del pod["metadata"]["ownerReferences"]
    assert pod_status.owner(pod) == ""


# Any pod that an API server may send: every field of its type, or not there.
WORDS = st.sampled_from(
    [
        *("", "Evicted", "NodeLost", "DeadlineExceeded", "Terminated", "Preempting", "OutOfcpu", "OOMKilled", "Error"),
        *("Completed", "StartError", "ContainerStatusUnknown", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"),
        *("ContainerCreating", "PodInitializing", "CrashLoopBackOff", "CreateContainerConfigError", "Unschedulable"),
        *("DeletionByPodGC", "DeletionByTaintManager", "EvictionByEvictionAPI", "TerminationByKubelet"),
    ]
) | st.text(max_size=5)
MESSAGES = st.sampled_from(["", "started\n", "started\nexit 3\n", "started\ntimeout\n", "not found"]) | st.text()
TIMES = st.sampled_from([None, "1970-01-01T00:00:00Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456Z"])
ENDED = st.fixed_dictionaries(
    {"exitCode": st.integers(-(2**31), 2**31 - 1)},
    optional={
        "reason": WORDS,
        "message": MESSAGES,
        "startedAt": TIMES,
        "finishedAt": TIMES,
        "signal": st.integers(0, 64),
        "containerID": st.text(max_size=3),
    },
)
STATE: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"waiting": st.fixed_dictionaries({}, optional={"reason": WORDS, "message": MESSAGES})}),
    st.fixed_dictionaries({"running": st.fixed_dictionaries({}, optional={"startedAt": TIMES})}),
    st.fixed_dictionaries({"terminated": ENDED}),
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["sandbox", "sidecar"])},
        optional={"state": STATE, "lastState": STATE, "imageID": st.text(max_size=3), "ready": st.booleans()},
    ),
    max_size=2,
)
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["PodScheduled", "DisruptionTarget", "Ready"]),
            "status": st.sampled_from(["True", "False", "Unknown"]),
        },
        optional={"reason": WORDS, "message": MESSAGES, "lastTransitionTime": TIMES},
    ),
    max_size=3,
)
STATUS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
        "reason": WORDS,
        "message": MESSAGES,
        "startTime": TIMES,
        "conditions": CONDITIONS | st.none(),
        "containerStatuses": CONTAINERS | st.none(),
    },
)
SPEC = st.fixed_dictionaries(
    {
        "containers": st.just([{"name": "sidecar"}]).flatmap(
            lambda more: st.fixed_dictionaries(
                {"name": st.just("sandbox")},
                optional={
                    "command": st.none() | st.lists(WORDS | st.integers(0, 99).map(str), max_size=7),
                    "resources": st.none()
                    | st.fixed_dictionaries(
                        {},
                        optional={"limits": st.none() | st.dictionaries(st.just("memory"), st.text("0123456789GMi"))},
                    ),
                },
            ).map(lambda one: [*more, one])
        )
    },
    optional={
        "nodeName": st.sampled_from(["", "node"]),
        "schedulingGates": st.none()
        | st.lists(st.sampled_from([GATE, "a/b"]).map(lambda name: {"name": name}), max_size=2),
    },
)
METADATA = st.fixed_dictionaries(
    {"name": st.just(f"{KEY.name}-abcde"), "uid": st.just("uid")},
    optional={"deletionTimestamp": TIMES, "ownerReferences": st.none() | st.just([{"uid": "x"}])},
)
ANY_POD = st.fixed_dictionaries({"metadata": METADATA, "spec": SPEC}, optional={"status": STATUS | st.none()})


@given(ANY_POD)
def test_no_status_breaks_the_reading(pod: dict[str, Any]) -> None:
    for found in (pod_status.observed_run(pod, KEY), pod_status.last_observed_run(pod, KEY)):
        assert isinstance(found, ObservedRun)
        assert (found.phase is Phase.ENDED) == (found.outcome is not None)
        assert (found.key, found.run_uid) == (KEY, "uid")
        if found.timeout_reason is not None:
            assert found.waiting or found.phase is Phase.GONE
        assert found.timeout_reason is not None or not found.permanent


@given(ANY_POD)
def test_what_vanished_is_over(pod: dict[str, Any]) -> None:
    assert pod_status.last_observed_run(pod, KEY).phase in (Phase.ENDED, Phase.NEVER_STARTED, Phase.GONE)


@given(ANY_POD)
def test_what_was_seen_to_run_is_never_taken_for_unstarted(pod: dict[str, Any]) -> None:
    found = ((pod.get("status") or {}).get("containerStatuses")) or ()
    state: dict[str, Any] = next((one.get("state") or {} for one in found if one["name"] == "sandbox"), {})
    if pod["spec"].get("nodeName") and ("running" in state or "terminated" in state):
        for seen in (pod_status.observed_run(pod, KEY), pod_status.last_observed_run(pod, KEY)):
            assert seen.phase not in (Phase.NEVER_STARTED, Phase.INERT, Phase.STARTING)


@given(ANY_POD)
def test_only_our_gate_on_a_pod_of_no_node_is_inert(pod: dict[str, Any]) -> None:
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]
    if pod_status.observed_run(pod, KEY).phase is Phase.INERT:
        assert GATE in gates
        assert not pod["spec"].get("nodeName")
