"""What a pod's status means: which phase, whose fault, how it ended. Pure: sends nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.backends.guest.evidence import Evidence, is_number, killed_outcome, outcome_without_evidence
from controller.backends.guest.layout import timeout_of
from controller.backends.http_json import Json, parse_time
from controller.backends.kubernetes.manifest import CONTAINER, END_NOW, GATE
from controller.backends.pull_errors import is_permanent_pull_error
from controller.protocol.model import Key, ObservedRun, Outcome, Phase, Reason, State, exit_outcome

UNITS = {"Ki": 1 / 1024, "Mi": 1, "Gi": 1024, "Ti": 1024 * 1024}  # in MiB; the cluster may write our 1024Mi as 1Gi
OVER = (Phase.ENDED, Phase.NEVER_STARTED)
PULL = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed", "ImageInspectError"}
NEVER_PULLED = {"InvalidImageName", "ErrImageNeverPull"}  # the kubelet will not even try
MAKING = {None, "ContainerCreating", "PodInitializing"}
UNMADE = {"StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"}  # of a container that ended
UNKNOWN = "ContainerStatusUnknown"  # of a container of which its node has no trace; its exit code means nothing
LAST_RESORT = "its own timer was gone and no controller ended it: its pod's activeDeadlineSeconds did"
NODE_GONE = {"DeletionByPodGC", "DeletionByTaintManager"}  # of the condition DisruptionTarget


def observed_run(pod: Json, key: Key) -> ObservedRun:
    """What one look at a pod of that attempt shows."""
    spec, status, container = pod["spec"], _status(pod), _container(pod)
    run = ObservedRun(key, pod["metadata"]["uid"], Phase.STARTING)
    image = container.get("imageID") or None
    run = replace(run, node=spec.get("nodeName"), image_digest=image, ending=is_ended_by_us(pod))
    if not spec.get("nodeName"):
        return _unscheduled(pod, run)
    state, over = container.get("state") or {}, status.get("phase") in ("Failed", "Succeeded")
    if "terminated" in state:
        return _terminated(pod, run, state["terminated"], over or is_being_deleted(pod))
    if over:
        return _ended_untold(pod, run, container)
    if "running" in state:
        return replace(run, phase=Phase.RUNNING, started_at=_time(state["running"].get("startedAt")))
    return _waiting(pod, run, state.get("waiting") or {})


def last_observed_run(pod: Json, key: Key) -> ObservedRun:
    """What the last look at a pod shows that is no more."""
    last = observed_run(pod, key)
    if last.phase in OVER:
        return last
    if not pod["spec"].get("nodeName"):
        return replace(last, phase=Phase.NEVER_STARTED)
    if _disruption(pod).get("reason") in NODE_GONE:
        return replace(last, phase=Phase.ENDED, outcome=_node_lost(pod), waiting=None)
    return replace(last, phase=Phase.GONE, waiting=None)


def is_being_deleted(pod: Json) -> bool:
    """Whether somebody asked for its deletion."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_ended_by_us(pod: Json) -> bool:
    """Whether a controller asked its node to end it."""
    return bool(pod["spec"].get("activeDeadlineSeconds") == END_NOW)


def overdue(pod: Json, now: datetime) -> float | None:
    """For how many seconds its deletion should have been complete by now; None where nobody asked for it."""
    moment = _time(pod["metadata"].get("deletionTimestamp"))
    return (now - moment).total_seconds() if moment is not None else None


def is_silent(pod: Json) -> bool:
    """Whether the cluster takes it that the pod's node does not answer."""
    return _condition(pod, "Ready").get("status") == "False"


def owner(pod: Json) -> str:
    """The uid of its Job, empty where it has none."""
    references = pod["metadata"].get("ownerReferences") or ()
    return next((str(one["uid"]) for one in references if one.get("controller")), "")


def _container(pod: Json) -> Json:
    found = _status(pod).get("containerStatuses") or ()
    return next((one for one in found if one.get("name") == CONTAINER), {})


def _status(pod: Json) -> Json:
    return pod.get("status") or {}


def _spec(pod: Json) -> Json:
    return next((one for one in pod["spec"]["containers"] if one["name"] == CONTAINER), {})


def _unscheduled(pod: Json, run: ObservedRun) -> ObservedRun:
    """Of a pod that no node ever took: the API server binds none that is being deleted, so it can never start."""
    if is_being_deleted(pod) or _status(pod).get("phase") in ("Failed", "Succeeded"):
        return replace(run, phase=Phase.NEVER_STARTED)
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]
    if GATE in gates:
        return replace(run, phase=Phase.INERT)
    if gates:
        return replace(run, waiting=f"its pod is held by {', '.join(gates)}")
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") != "Unschedulable":
        return run
    return replace(run, waiting=f"Unschedulable: {scheduled.get('message', '')}", timeout_reason=Reason.UNSCHEDULABLE)


def _waiting(pod: Json, run: ObservedRun, waiting: Json) -> ObservedRun:
    """Of a container that its node has not started yet."""
    reason, message = waiting.get("reason"), waiting.get("message") or ""
    if reason in MAKING:
        return run
    words, image = f"{reason}: {message}" if message else str(reason), str(_spec(pod).get("image") or "")
    if reason in PULL or reason in NEVER_PULLED:
        permanent = reason in NEVER_PULLED or is_permanent_pull_error(message, image)
        return replace(run, waiting=words, timeout_reason=Reason.IMAGE_PULL_FAILED, permanent=permanent)
    return replace(run, waiting=words, timeout_reason=Reason.START_FAILED)


def _terminated(pod: Json, run: ObservedRun, ended: Json, over: bool) -> ObservedRun:
    """Of a container that ended. Where it did not end by itself, its pod says why, a moment after."""
    run = replace(run, started_at=_time(ended.get("startedAt")))
    told = _told(pod, ended)
    if told is None and not over:
        return replace(run, phase=Phase.RUNNING)
    return replace(
        run, phase=Phase.ENDED, outcome=told or _outcome(pod, ended), ended_at=_time(ended.get("finishedAt"))
    )


def _ended_untold(pod: Json, run: ObservedRun, container: Json) -> ObservedRun:
    """Of a pod that is over while its container's end was never told.

    It is sure not to have started only where its node says that the container still waits, and for the first time: a
    kubelet that restarts rejects what ran before in the words that it has for new pods (`rejectPod` in Kubernetes
    1.35's kubelet.go), and tells a container that it lost as one that waits again.
    """
    state, before = container.get("state") or {}, container.get("lastState") or container.get("restartCount")
    if "waiting" in state and not before and _disruption(pod).get("reason") not in NODE_GONE:
        waited = _waiting(pod, run, state["waiting"])
        return replace(
            waited, phase=Phase.NEVER_STARTED, waiting=waited.waiting or _words(pod, "its node did not start it")
        )
    started = _time(state.get("running", {}).get("startedAt"))
    outcome = _interruption(pod, None) or Outcome(State.FAILED, Reason.KILLED, "its pod was ended, nobody says why")
    return replace(run, phase=Phase.ENDED, outcome=outcome, started_at=started)


def _told(pod: Json, ended: Json) -> Outcome | None:
    """How a container ended by what the wrapper wrote down, and the kernel's kill for memory."""
    spec = _spec(pod)
    evidence, oom = Evidence.parse(ended.get("message") or ""), ended.get("reason") == "OOMKilled"
    return evidence.outcome(
        timeout_seconds=timeout_of(spec.get("command") or ()), memory_mib=_memory_mib(spec), oom=oom
    )


def _outcome(pod: Json, ended: Json) -> Outcome:
    """How a container ended that wrote no end down: by what its pod says."""
    reason, evidence = ended.get("reason"), Evidence.parse(ended.get("message") or "")
    code = int(ended.get("exitCode", 0)) if reason != UNKNOWN and not evidence.again else None
    if reason in UNMADE:
        return Outcome(State.FAILED, Reason.START_FAILED, f"{reason}: {ended.get('message', '')}", None)
    if _disruption(pod).get("reason") == "DeletionByPodGC":  # its node is no more: no exit code is of a node's telling
        return _node_lost(pod)
    interrupted = _interruption(pod, code)
    if interrupted is not None:
        return interrupted
    if reason == UNKNOWN:
        return _node_lost(pod)
    if code == 0:
        return exit_outcome(0)
    if code is not None and not evidence.started:
        return outcome_without_evidence(code)
    return killed_outcome(code)


def _interruption(pod: Json, code: int | None) -> Outcome | None:
    """Who ended a run that did not end by itself, as its pod tells it; `code` is None where its end was not told."""
    reason, disruption = _status(pod).get("reason"), _disruption(pod)
    if reason == "NodeLost" or (code is None and disruption.get("reason") in NODE_GONE):
        return _node_lost(pod)
    if reason == "DeadlineExceeded":
        last_resort = pod["spec"].get("activeDeadlineSeconds", END_NOW) != END_NOW
        timed_out = Outcome(State.FAILED, Reason.DEADLINE_EXCEEDED, LAST_RESORT, code)
        return timed_out if last_resort else killed_outcome(code)
    if reason or disruption:
        words = _words(pod, "its node put it out")
        if code is None:  # a kubelet that restarts turns away what it no longer knows, also what had ended
            return Outcome(State.LOST, Reason.EVICTED, f"{words}; whether it had ended by then, and how, is not known")
        return Outcome(State.FAILED, Reason.EVICTED, words, code)
    if is_being_deleted(pod):
        return Outcome(State.FAILED, Reason.DELETED, "its Job or pod was deleted by somebody else while it ran", code)
    return None


def _node_lost(pod: Json) -> Outcome:
    return Outcome(State.LOST, Reason.NODE_LOST, f"{_words(pod, 'its node went away')}; how it ended is not known")


def _words(pod: Json, otherwise: str) -> str:
    """What the pod itself says of its end."""
    status, disruption = _status(pod), _disruption(pod)
    reason = status.get("reason") or disruption.get("reason")
    message = (status.get("message") or disruption.get("message") or "").strip()
    return ": ".join(part for part in (otherwise, reason, message) if part)


def _disruption(pod: Json) -> Json:
    return _condition(pod, "DisruptionTarget", wanted="True")


def _condition(pod: Json, kind: str, wanted: str = "False") -> Json:
    found = _status(pod).get("conditions") or ()
    return next((one for one in found if one.get("type") == kind and one.get("status") == wanted), {})


def _memory_mib(container: Json) -> int:
    limit = str(((container.get("resources") or {}).get("limits") or {}).get("memory", ""))
    unit, number = limit[-2:], limit[:-2]
    return int(int(number) * UNITS[unit]) if unit in UNITS and is_number(number) else 0


def _time(text: str | None) -> datetime | None:
    return parse_time(text, never=1970)
