"""Translates a pod's status into a phase and an outcome. Pure: sends nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller.backends.guest.evidence import Evidence, is_number, killed_outcome, outcome_without_evidence
from controller.backends.guest.layout import timeout_of
from controller.backends.http_json import Json, parse_time
from controller.backends.kubernetes.manifest import CONTAINER, END_NOW, GATE
from controller.backends.pull_errors import is_permanent_pull_error
from controller.protocol.model import Key, ObservedRun, Outcome, Phase, Reason, State, exit_outcome

UNITS = {"Ki": 1 / 1024, "Mi": 1, "Gi": 1024, "Ti": 1024 * 1024}  # in MiB; the API server may write 1024Mi as 1Gi
OVER = (Phase.ENDED, Phase.NEVER_STARTED)
PULL = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed", "ImageInspectError"}
NEVER_PULLED = {"InvalidImageName", "ErrImageNeverPull"}  # the kubelet will not even try
STARTING = {None, "ContainerCreating", "PodInitializing"}
START_ERRORS = {
    "StartError",
    "ContainerCannotRun",
    "CreateContainerError",
    "RunContainerError",
}  # reasons of an ended container that never ran
UNKNOWN = "ContainerStatusUnknown"  # its node has no trace of the container; the exit code means nothing
LAST_RESORT = "neither its own timer nor a controller ended it in time: its pod's activeDeadlineSeconds did"
NODE_GONE = {"DeletionByPodGC", "DeletionByTaintManager"}  # of the condition DisruptionTarget


def observed_run(pod: Json, key: Key) -> ObservedRun:
    """The state of a run, from its pod."""
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
        return _ended_without_report(pod, run, container)
    if "running" in state:
        return replace(run, phase=Phase.RUNNING, started_at=_time(state["running"].get("startedAt")))
    return _waiting(pod, run, state.get("waiting") or {})


def last_observed_run(pod: Json, key: Key) -> ObservedRun:
    """The state of a run whose pod was deleted, from the last version of that pod."""
    last = observed_run(pod, key)
    if last.phase in OVER:
        return last
    if not pod["spec"].get("nodeName"):
        return replace(last, phase=Phase.NEVER_STARTED)
    if _disruption(pod).get("reason") in NODE_GONE:
        return replace(last, phase=Phase.ENDED, outcome=_node_lost(pod), waiting=None)
    return replace(last, phase=Phase.GONE, waiting=None)


def is_being_deleted(pod: Json) -> bool:
    """Whether its deletion was requested."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_ended_by_us(pod: Json) -> bool:
    """Whether a controller asked its node to end it."""
    return bool(pod["spec"].get("activeDeadlineSeconds") == END_NOW)


def overdue(pod: Json, now: datetime) -> float | None:
    """Seconds since its deletion should have been complete; None if its deletion was not requested."""
    moment = _time(pod["metadata"].get("deletionTimestamp"))
    return (now - moment).total_seconds() if moment is not None else None


def is_silent(pod: Json) -> bool:
    """Whether the pod is not ready, as the cluster marks the pods of a node that does not answer."""
    return _condition(pod, "Ready").get("status") == "False"


def owner(pod: Json) -> str:
    """The uid of its Job; empty if it has none."""
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
    """A pod without a node. If it is being deleted it can never start: the API server binds no such pod to a node."""
    if is_being_deleted(pod) or _status(pod).get("phase") in ("Failed", "Succeeded"):
        return replace(run, phase=Phase.NEVER_STARTED)
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]
    if GATE in gates:
        return replace(run, phase=Phase.INERT)
    if gates:
        return replace(run, waiting=f"its pod waits for the scheduling gates {', '.join(gates)}")
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") != "Unschedulable":
        return run
    return replace(run, waiting=f"Unschedulable: {scheduled.get('message', '')}", timeout_reason=Reason.UNSCHEDULABLE)


def _waiting(pod: Json, run: ObservedRun, waiting: Json) -> ObservedRun:
    """A run whose container its node has not started yet."""
    reason, message = waiting.get("reason"), waiting.get("message") or ""
    if reason in STARTING:
        return run
    explained, image = f"{reason}: {message}" if message else str(reason), str(_spec(pod).get("image") or "")
    if reason in PULL or reason in NEVER_PULLED:
        permanent = reason in NEVER_PULLED or is_permanent_pull_error(message, image)
        return replace(run, waiting=explained, timeout_reason=Reason.IMAGE_PULL_FAILED, permanent=permanent)
    return replace(run, waiting=explained, timeout_reason=Reason.START_FAILED)


def _terminated(pod: Json, run: ObservedRun, ended: Json, over: bool) -> ObservedRun:
    """A run whose container has ended. If it was ended from outside, its pod says why a moment later."""
    run = replace(run, started_at=_time(ended.get("startedAt")))
    outcome = _outcome_by_evidence(pod, ended)
    if outcome is None and not over:
        return replace(run, phase=Phase.RUNNING)
    return replace(
        run,
        phase=Phase.ENDED,
        outcome=outcome or _outcome_by_status(pod, ended),
        ended_at=_time(ended.get("finishedAt")),
    )


def _ended_without_report(pod: Json, run: ObservedRun, container: Json) -> ObservedRun:
    """A pod that has ended while its container's end was never reported.

    It certainly did not start only if its node reports the container as waiting, and for the first time: a kubelet that
    restarts rejects pods that ran before in the same words as new pods (`rejectPod` in Kubernetes 1.35's kubelet.go),
    and reports a container that it lost as waiting again.
    """
    state, before = container.get("state") or {}, container.get("lastState") or container.get("restartCount")
    if "waiting" in state and not before and _disruption(pod).get("reason") not in NODE_GONE:
        waited = _waiting(pod, run, state["waiting"])
        return replace(
            waited, phase=Phase.NEVER_STARTED, waiting=waited.waiting or _explained(pod, "its node did not start it")
        )
    started = _time(state.get("running", {}).get("startedAt"))
    outcome = _interruption(pod, None) or Outcome(
        State.FAILED, Reason.KILLED, "its pod was terminated, and no cause was reported"
    )
    return replace(run, phase=Phase.ENDED, outcome=outcome, started_at=started)


def _outcome_by_evidence(pod: Json, ended: Json) -> Outcome | None:
    """A container's outcome from what the wrapper wrote, and from the kernel's kill for memory."""
    spec = _spec(pod)
    evidence, oom = Evidence.parse(ended.get("message") or ""), ended.get("reason") == "OOMKilled"
    return evidence.outcome(
        timeout_seconds=timeout_of(spec.get("command") or ()), memory_mib=_memory_mib(spec), oom=oom
    )


def _outcome_by_status(pod: Json, ended: Json) -> Outcome:
    """A container's outcome from its pod's status, if the wrapper wrote no end."""
    reason, evidence = ended.get("reason"), Evidence.parse(ended.get("message") or "")
    code = int(ended.get("exitCode", 0)) if reason != UNKNOWN and not evidence.again else None
    if reason in START_ERRORS:
        return Outcome(State.FAILED, Reason.START_FAILED, f"{reason}: {ended.get('message', '')}", None)
    if _disruption(pod).get("reason") == "DeletionByPodGC":  # its node is gone: no exit code comes from a node
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
    """The outcome of a run that was ended from outside, if its pod says so; `code` None: its end was not reported."""
    reason, disruption = _status(pod).get("reason"), _disruption(pod)
    if reason == "NodeLost" or (code is None and disruption.get("reason") in NODE_GONE):
        return _node_lost(pod)
    if reason == "DeadlineExceeded":
        last_resort = pod["spec"].get("activeDeadlineSeconds", END_NOW) != END_NOW
        timed_out = Outcome(State.FAILED, Reason.DEADLINE_EXCEEDED, LAST_RESORT, code)
        return timed_out if last_resort else killed_outcome(code)
    if reason or disruption:
        explained = _explained(pod, "its node evicted it")
        if code is None:  # a restarted kubelet rejects pods that it does not know any more, even ended ones
            return Outcome(State.LOST, Reason.EVICTED, f"{explained}; whether and how it had ended by then is unknown")
        return Outcome(State.FAILED, Reason.EVICTED, explained, code)
    if is_being_deleted(pod):
        return Outcome(State.FAILED, Reason.DELETED, "its Job or pod was deleted by somebody else while it ran", code)
    return None


def _node_lost(pod: Json) -> Outcome:
    return Outcome(State.LOST, Reason.NODE_LOST, f"{_explained(pod, 'its node went away')}; how it ended is unknown")


def _explained(pod: Json, summary: str) -> str:
    """The pod's own explanation of its end, after `summary`."""
    status, disruption = _status(pod), _disruption(pod)
    reason = status.get("reason") or disruption.get("reason")
    message = (status.get("message") or disruption.get("message") or "").strip()
    return ": ".join(part for part in (summary, reason, message) if part)


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
