"""The pretended controllers of Jobs, of garbage and of scheduling: each looks at one object soon after a change."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from copy import deepcopy

from tests.support.fake_kubernetes.registry import OVER, Registry, suffix
from tests.support.fake_kubernetes.store import JOBS, PODS, Event, Object, Ref, now_text

TRACKING = "batch.kubernetes.io/job-tracking"
JOB_NAME = "batch.kubernetes.io/job-name"


class Controller(ABC):
    """Acts on objects one by one; `on` false: its work is left to the test."""

    def __init__(self, registry: Registry) -> None:
        self.on = True
        self.registry, self.store = registry, registry.store
        self._due: set[Ref] = set()
        self.store.listeners.append(self.notice)

    def notice(self, event: Event) -> None:
        """Something changed."""
        self.enqueue(event.ref)

    def enqueue(self, ref: Ref) -> None:
        """Looks at that object soon."""
        if ref not in self._due:
            self._due.add(ref)
            asyncio.get_running_loop().call_soon(self._look, ref)

    def later(self, seconds: float, ref: Ref) -> None:
        """Looks at it after a while."""
        asyncio.get_running_loop().call_later(max(seconds, 0.0), self.enqueue, ref)

    def _look(self, ref: Ref) -> None:
        self._due.discard(ref)
        if self.on:
            self.sync(ref)

    @abstractmethod
    def sync(self, ref: Ref) -> None:
        """Does what is to be done about that object."""


class JobController(Controller):
    """Makes each Job's pod, counts it once it is over, and says how the Job ended."""

    def __init__(self, registry: Registry, delay: float) -> None:
        super().__init__(registry)
        self.delay = delay  # seconds before a new Job's pod
        self._pods: dict[Ref, set[Ref]] = {}  # by the Job that they name
        self._made_at: dict[str, float] = {}  # when a Job was first seen, by uid
        self._waiting: set[Ref] = set()  # Jobs for whose pod the quota has no room

    def notice(self, event: Event) -> None:
        if event.ref.kind is JOBS:
            self.enqueue(event.ref)
        elif event.ref.kind is PODS:
            job = _job_of(event.ref, event.object)
            pods = self._pods.setdefault(job, set())
            (pods.discard if event.type == "DELETED" else pods.add)(event.ref)
            self.enqueue(job)
            for waiting in list(self._waiting):
                self.enqueue(waiting)

    def pods(self, job: Ref) -> list[tuple[Ref, Object]]:
        """The pods that say they are that Job's, by name."""
        found = [(ref, self.store.find(ref)) for ref in sorted(self._pods.get(job, ()), key=lambda ref: ref.name)]
        return [(ref, pod) for ref, pod in found if pod is not None]

    def make_pod(self, ref: Ref) -> Ref:
        """One more pod of that Job."""
        job = self.store.get(ref)
        template, meta = deepcopy(job["spec"]["template"]), job["metadata"]
        owner = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        named = {
            **template["metadata"],
            "name": f"{meta['name'][:57]}-{suffix()}",
            "generateName": f"{meta['name'][:57]}-",
            "finalizers": [TRACKING],
            "ownerReferences": [owner],
        }
        made = self.registry.create(PODS, ref.namespace, {"metadata": named, "spec": template["spec"]})
        return Ref(PODS, ref.namespace, made["metadata"]["name"])

    def sync(self, ref: Ref) -> None:
        job = self.store.find(ref)
        uid = job["metadata"]["uid"] if job is not None else ""
        pods = self.pods(ref)
        for pod_ref, pod in pods:
            if job is None or _owner(pod) != uid:
                self._untrack(pod_ref)
        if job is not None:
            self._count(ref, job, [(pod_ref, pod) for pod_ref, pod in pods if _owner(pod) == uid])

    def _count(self, ref: Ref, job: Object, pods: list[tuple[Ref, Object]]) -> None:
        over = {pod_ref: pod for pod_ref, pod in pods if _is_over(pod, job)}
        tracked = [pod for pod in over.values() if TRACKING in pod["metadata"].get("finalizers", ())]
        for pod_ref in over:
            self._untrack(pod_ref)
        if finished(job):
            return
        succeeded = sum(pod["status"].get("phase") == "Succeeded" for pod in tracked)
        left = [pod for pod_ref, pod in pods if pod_ref not in over]
        going = sum(bool(pod["metadata"].get("deletionTimestamp")) for pod in left)
        status = {
            "active": len(left) - going,
            "terminating": going,
            "ready": sum(pod["status"].get("phase") == "Running" for pod in left),
            "succeeded": job["status"].get("succeeded", 0) + succeeded,
            "failed": job["status"].get("failed", 0) + len(tracked) - succeeded,
        }
        self.registry.change(ref, lambda found: _tell(found, status))
        if status["failed"] > job["spec"]["backoffLimit"]:  # it has failed: what runs beside goes too
            for pod_ref, pod in pods:
                if pod_ref not in over and not pod["metadata"].get("deletionTimestamp"):
                    self.registry.delete(pod_ref, {})
        after = self.store.find(ref)
        if after is not None and not finished(after):
            self._fill(ref, after, len(left))

    def _fill(self, ref: Ref, job: Object, there: int) -> None:
        spec, now = job["spec"], asyncio.get_running_loop().time()
        self._waiting.discard(ref)
        if spec.get("suspend") or job["metadata"].get("deletionTimestamp"):
            return
        due = self._made_at.setdefault(job["metadata"]["uid"], now) + self.delay
        if now < due:
            self.later(due - now, ref)
            return
        for _ in range(min(spec["parallelism"], spec["completions"] - job["status"].get("succeeded", 0)) - there):
            if not self.registry.room_for_pod(ref.namespace):
                self._waiting.add(ref)
                return
            self.make_pod(ref)

    def _untrack(self, ref: Ref) -> None:
        def change(pod: Object) -> None:
            found = pod["metadata"].get("finalizers") or []
            pod["metadata"]["finalizers"] = [one for one in found if one != TRACKING]

        self.registry.change(ref, change)


class Collector(Controller):
    """Removes what is left of deleted Jobs, and pods that no node will ever end."""

    def __init__(self, registry: Registry, jobs: JobController) -> None:
        super().__init__(registry)
        self._jobs = jobs

    def notice(self, event: Event) -> None:
        self.enqueue(event.ref)
        if event.ref.kind is PODS:
            self.enqueue(_job_of(event.ref, event.object))

    def sync(self, ref: Ref) -> None:
        if ref.kind is PODS:
            self._pod(ref)
        elif ref.kind is JOBS:
            self._job(ref, self.store.find(ref))

    def _job(self, ref: Ref, job: Object | None) -> None:
        pods = self._jobs.pods(ref)
        holds = job["metadata"].get("finalizers", ()) if job is not None else ()
        uid = job["metadata"]["uid"] if job is not None else ""
        if "orphan" in holds:
            for pod_ref, pod in pods:
                if _owner(pod) == uid:
                    self.registry.change(pod_ref, lambda found: found["metadata"].pop("ownerReferences"))
            self._let_go(ref, "orphan")
        mine = [pod_ref for pod_ref, pod in pods if _owner(pod) and (job is None or _owner(pod) != uid)]
        if "foregroundDeletion" in holds:
            owned = [pod_ref for pod_ref, pod in pods if _owner(pod) == uid]
            mine += owned
            if not owned:
                self._let_go(ref, "foregroundDeletion")
        for pod_ref in mine:
            if self.store.find(pod_ref) is not None:
                self.registry.delete(pod_ref, {})

    def _pod(self, ref: Ref) -> None:
        """One that is to go and that no node has: there is nobody else to say that it is over."""
        pod = self.store.find(ref)
        if pod is None or pod["spec"].get("nodeName") or not pod["metadata"].get("deletionTimestamp"):
            return
        if pod["status"].get("phase") not in OVER:
            self.registry.change(ref, lambda found: found["status"].update(phase="Failed"))

    def _let_go(self, ref: Ref, finalizer: str) -> None:
        def change(job: Object) -> None:
            job["metadata"]["finalizers"] = [one for one in job["metadata"]["finalizers"] if one != finalizer]

        self.registry.change(ref, change)


class Scheduler(Controller):
    """Puts pods that nothing holds on the one node."""

    NODE = "fake-node"

    def sync(self, ref: Ref) -> None:
        pod = self.store.find(ref)
        if ref.kind is not PODS or pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        if not pod["spec"].get("nodeName") and not pod["spec"].get("schedulingGates"):
            self.registry.change(ref, self._bind)

    def _bind(self, pod: Object) -> None:
        pod["spec"]["nodeName"] = self.NODE
        others = [one for one in pod["status"].get("conditions", ()) if one["type"] != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now_text()}
        pod["status"]["conditions"] = [*others, scheduled]


def finished(job: Object) -> bool:
    """Whether a Job has ended."""
    conditions = job["status"].get("conditions", ())
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def _tell(job: Object, numbers: Object) -> None:
    """Writes a Job's numbers, and its end where they say so."""
    status, now = job["status"], now_text()
    status.setdefault("startTime", now)
    for name, number in numbers.items():
        status.pop(name, None)
        if number or name in ("ready", "terminating"):
            status[name] = number
    if numbers["active"] or numbers["terminating"]:
        return
    if numbers["succeeded"] >= job["spec"]["completions"]:
        kinds, reason = ("SuccessCriteriaMet", "Complete"), "CompletionsReached"
        message = "Reached expected number of succeeded pods"
        status["completionTime"] = now
    elif numbers["failed"] > job["spec"]["backoffLimit"]:
        kinds, reason = ("FailureTarget", "Failed"), "BackoffLimitExceeded"
        message = "Job has reached the specified backoff limit"
    else:
        return
    words = {"status": "True", "reason": reason, "message": message, "lastProbeTime": now, "lastTransitionTime": now}
    status["conditions"] = [*status.get("conditions", ()), *({"type": kind, **words} for kind in kinds)]


def _is_over(pod: Object, job: Object) -> bool:
    """Whether the Job counts a pod as ended."""
    if pod["status"].get("phase") in OVER:
        return True
    return bool(pod["metadata"].get("deletionTimestamp")) and job["spec"].get("podReplacementPolicy") != "Failed"


def _owner(pod: Object) -> str:
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(one["uid"]) for one in owners if one.get("controller")), "")


def _job_of(ref: Ref, pod: Object) -> Ref:
    """The Job that a pod names, whether it is there or not."""
    return Ref(JOBS, ref.namespace, (pod["metadata"].get("labels") or {}).get(JOB_NAME, ""))
