"""Whether a Deployment, a StatefulSet or a Job is ready, from what its cluster shows of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.backends.kubernetes.pod_status import NEVER_PULLED, PULL
from controller.backends.pull_errors import is_permanent_pull_error
from controller.protocol.text import visible
from infra.waiting.container_verdict import STARTING_SECONDS, last_words
from infra.waiting.readiness import Unready

Json = Mapping[str, Any]
EXITS = 3  # of a container, at once and after a pause: the first may have met a network policy that was not there yet
PULL_SECONDS = 120.0  # for a registry that does not answer, or is busy
MENDED_SECONDS = 20.0  # for an error that a cluster reports while its parts are not in step yet
ATTEMPTS_SECONDS = 30.0  # from a Job's first failure: names and network policies may take a moment to reach a new pod
UNREADY_SECONDS = 120.0  # for a container that has started, and says why it is not ready
NOT_MADE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
HELD_UP = {"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "NetworkNotReady"}
NO_VOLUME = {"ProvisioningFailed", "FailedBinding"}
ONE_POD = re.compile(r'pods "[^"]*" is')  # each try is of another


@dataclass(frozen=True)
class SeenWorkload:
    """A workload as the API shows it, and the objects that belong to it."""

    workload: Json
    pods: Sequence[Json]  # of its newest revision
    events: Sequence[Json] = ()  # since the wait began, about the workload and its objects; the oldest first
    claims: Sequence[Json] = ()  # that its pods name
    lines: Sequence[str] = ()  # the last of the log that `speaker` names
    exits_before: Mapping[str, int] = field(default_factory=dict)  # by a pod's uid, when the wait began


def verdict(seen: SeenWorkload) -> Unready | None:
    """None if the workload is ready, else the reason that says most."""
    if not _observed(seen.workload):
        return Unready("unobserved", "its controller has not seen it yet", quiet=STARTING_SECONDS)
    ready = _succeeded(seen.workload) if seen.workload["kind"] == "Job" else _rolled_out(seen)
    if ready:
        return None
    return (
        _failed_job(seen)
        or next((found for pod in seen.pods if (found := _container(seen, pod))), None)
        or _unmade(seen)
        or next((found for claim in seen.claims if (found := _claim(seen, claim))), None)
        or next((found for pod in seen.pods if (found := _pod(seen, pod))), None)
        or _progress(seen)
    )


def of_newest(workload: Json, replica_sets: Sequence[Json], pods: Sequence[Json]) -> list[Json]:
    """The pods of the newest revision, or of the Job."""
    status, owner = workload.get("status") or {}, workload["metadata"]["uid"]
    if workload["kind"] == "Deployment":
        newest = newest_set(workload, replica_sets)
        return [pod for pod in pods if newest is not None and _owned(pod, newest["metadata"]["uid"])]
    found = [pod for pod in pods if _owned(pod, owner)]
    revision = status.get("updateRevision")
    if workload["kind"] == "StatefulSet" and revision:
        return [pod for pod in found if pod["metadata"]["labels"].get("controller-revision-hash") == revision]
    return found


def newest_set(workload: Json, replica_sets: Sequence[Json]) -> Json | None:
    """The ReplicaSet of a Deployment's current revision."""
    own = [one for one in replica_sets if _owned(one, workload["metadata"]["uid"])]
    return next((one for one in own if _revision(one) == _revision(workload)), None)


def exits(pod: Json) -> int:
    """How often the containers of a pod have ended."""
    return sum(_exits(one) for one in _statuses(pod))


def speaker(pods: Sequence[Json]) -> tuple[str, str, bool] | None:
    """The pod and the container whose log says most, and whether to read the log of the container's previous run."""
    for pod in pods:
        for one in _statuses(pod):
            if one["restartCount"] and not one["state"].get("terminated"):
                return pod["metadata"]["name"], one["name"], not one.get("ready")
    for pod in pods:
        for one in _statuses(pod):
            if one["state"].get("terminated") or (one["state"].get("running") and not one.get("ready")):
                return pod["metadata"]["name"], one["name"], False
    return None


def pull_is_permanent(reason: str | None, message: str | None, image: str) -> bool:
    """Whether an image can never be pulled, from the reason and the message of the container that waits for it."""
    return reason in NEVER_PULLED or (reason in PULL and is_permanent_pull_error(message or "", image))


def _observed(workload: Json) -> bool:
    if workload["kind"] == "Job":
        return True
    seen: int = (workload.get("status") or {}).get("observedGeneration", 0)
    return seen >= int(workload["metadata"]["generation"])


def _succeeded(job: Json) -> bool:
    return bool((job.get("status") or {}).get("succeeded"))


def _rolled_out(seen: SeenWorkload) -> bool:
    """Every pod is of the newest revision and ready; nothing of an older one is left."""
    wanted, status = seen.workload["spec"].get("replicas", 1), seen.workload.get("status") or {}
    if not wanted:
        return True
    ready = sum(_ready(pod) for pod in seen.pods if not pod["metadata"].get("deletionTimestamp"))
    return ready >= int(wanted) and ready >= int(status.get("replicas", 0))


def _failed_job(seen: SeenWorkload) -> Unready | None:
    if seen.workload["kind"] != "Job":
        return None
    conditions = (seen.workload.get("status") or {}).get("conditions") or []
    ended = next((one for one in conditions if one["type"] == "Failed" and one["status"] == "True"), None)
    ends = [end for pod in seen.pods for one in _statuses(pod) if (end := one["state"].get("terminated"))]
    said = [last_words((end.get("message") or "").splitlines()) for end in ends if end["exitCode"]]
    if ended is not None:
        return Unready("failed", said[-1] if said else visible(ended.get("message", ended["reason"])), patience=0)
    if said:
        return Unready("attempts", f"attempt {len(said)} failed: {said[-1]}", patience=ATTEMPTS_SECONDS)
    return None


def _container(seen: SeenWorkload, pod: Json) -> Unready | None:
    name = f"pod {pod['metadata']['name']}"
    for one in _statuses(pod):
        waiting = one["state"].get("waiting") or {}
        reason, image = waiting.get("reason", ""), one["image"]
        said = visible(waiting.get("message") or _last_event(seen, pod, {"Failed"}) or reason)
        if reason in PULL | NEVER_PULLED:
            if reason == "ImagePullBackOff" and (why := _last_event(seen, pod, {"Failed"}, "Failed to pull image")):
                said = visible(why)
            patience = 0 if pull_is_permanent(reason, said, image) else PULL_SECONDS
            return Unready("image", f"{name} cannot pull image {image}: {said}", patience)
        if reason in NOT_MADE:
            return Unready("exits", f"{name} cannot start its container: {said}", patience=MENDED_SECONDS)
        if seen.workload["kind"] != "Job" and (ended := _exits(one)) and not one.get("ready"):
            return _exited(seen, pod, one, ended)
    return None


def _exited(seen: SeenWorkload, pod: Json, status: Json, ended: int) -> Unready:
    new = exits(pod) - seen.exits_before.get(pod["metadata"]["uid"], 0)
    last = status["state"].get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    why = last.get("reason") if last.get("reason") not in (None, "Error") else f"exit code {last.get('exitCode')}"
    often = "once" if ended == 1 else f"{ended} times"
    said = last_words((last.get("message") or "").splitlines() or seen.lines)
    words = f"pod {pod['metadata']['name']} ended {often} ({why}): {said}"
    return Unready("exits", words, patience=0 if ended >= EXITS and new else math.inf)


def _unmade(seen: SeenWorkload) -> Unready | None:
    """What keeps pods from being created at all: a quota, a policy, a right."""
    wanted = seen.workload["spec"].get("replicas", seen.workload["spec"].get("parallelism", 1))
    said = _last_event(seen, None, {"FailedCreate"})
    if said is None or len(seen.pods) >= wanted:
        return None
    words = ONE_POD.sub("pods are", visible(said).removeprefix("(combined from similar events): "))
    return Unready("unmade", f"its pods are rejected: {words}", patience=MENDED_SECONDS)


def _claim(seen: SeenWorkload, claim: Json) -> Unready | None:
    if (claim.get("status") or {}).get("phase") == "Bound":
        return None
    said = _last_event(seen, claim, NO_VOLUME)
    if said is None:
        return None
    return Unready(
        "claim", f"its volume {claim['metadata']['name']} is not provisioned: {visible(said)}", patience=MENDED_SECONDS
    )


def _pod(seen: SeenWorkload, pod: Json) -> Unready | None:
    name, status = f"pod {pod['metadata']['name']}", pod["status"]
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {"status": "True"})
    if scheduled["status"] != "True":
        said = visible(scheduled.get("message") or scheduled.get("reason") or "no scheduler has seen it")
        return Unready("unscheduled", f"{name} is not scheduled: {said}", quiet=5.0)
    if status["phase"] == "Failed":
        return Unready("pod", f"{name} failed: {visible(status.get('message') or status.get('reason') or '')}")
    if (held := _last_event(seen, pod, HELD_UP)) and not any(_running(one) for one in _statuses(pod)):
        return Unready("held up", f"{name} does not start: {visible(held)}", quiet=5.0)
    for one in _statuses(pod):
        if _running(one) and not one.get("ready"):
            patience = UNREADY_SECONDS if one.get("started") else math.inf  # a database may have much to recover
            words = f"{name} runs, and is not ready: {last_words(seen.lines)}"
            return Unready("unready", words, patience, quiet=STARTING_SECONDS)
    return None


def _progress(seen: SeenWorkload) -> Unready:
    if seen.workload["kind"] == "Job":
        return Unready("progress", "it runs", quiet=STARTING_SECONDS)
    ready, wanted = sum(_ready(pod) for pod in seen.pods), seen.workload["spec"].get("replicas", 1)
    words = (
        f"{ready} of {wanted} pods are ready" if ready < wanted else "pods of the previous revision are still ending"
    )
    return Unready("progress", words, quiet=STARTING_SECONDS)


def _last_event(seen: SeenWorkload, about: Json | None, reasons: set[str], begins: str = "") -> str | None:
    """The message of the last event with one of these reasons, about one object or any."""
    found = [
        str(one.get("message") or one["reason"])
        for one in seen.events
        if one["reason"] in reasons
        and (about is None or one["involvedObject"].get("uid") == about["metadata"]["uid"])
        and str(one.get("message") or "").startswith(begins)
    ]
    return found[-1] if found else None


def _statuses(pod: Json) -> list[Json]:
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _exits(status: Json) -> int:
    between = (status["state"].get("waiting") or {}).get("reason") == "CrashLoopBackOff"
    return int(status["restartCount"]) + bool(between or status["state"].get("terminated"))


def _running(status: Json) -> bool:
    return bool(status["state"].get("running"))


def _ready(pod: Json) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions") or ())


def _revision(thing: Json) -> str | None:
    found: str | None = (thing["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision")
    return found


def _owned(thing: Json, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in thing["metadata"].get("ownerReferences") or ())
