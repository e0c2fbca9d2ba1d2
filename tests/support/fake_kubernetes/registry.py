"""What the pretended API server does with objects: checks them, fills in what is not said, and ends them in order."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from tests.support.fake_kubernetes.checks import check_change, check_new
from tests.support.fake_kubernetes.patch import MERGE, STRATEGIC, patched
from tests.support.fake_kubernetes.store import (
    JOBS,
    NAMESPACES,
    PODS,
    Kind,
    Object,
    Ref,
    Refusal,
    Store,
    conflict,
    now_text,
    time_text,
)

OVER = ("Succeeded", "Failed")
GATED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "SchedulingGated",
    "message": "Scheduling is blocked due to non-empty scheduling gates",
}


class Registry:
    """The verbs on objects, as the API server means them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.job_quota: int | None = None
        self.pod_quota: int | None = None  # of pods that are not over

    def create(self, kind: Kind, namespace: str, body: Object, *, dry_run: bool = False) -> Object:
        """Makes an object. Raises Refusal."""
        made = _fresh(kind, namespace, body)
        ref = Ref(kind, namespace, made["metadata"].get("name", ""))
        if kind is not NAMESPACES:
            self.store.get(Ref(NAMESPACES, "", namespace))
        self._within_quota(ref)
        if kind is not NAMESPACES:
            check_new(kind, made)
            _fill_in(kind, made)
        there = self.store.find(ref)
        if there is not None:
            going = "object is being deleted: " if there["metadata"].get("deletionTimestamp") else ""
            message = f'{going}{kind.qualified} "{ref.name}" already exists'
            raise Refusal(409, "AlreadyExists", message, kind.details(ref.name))
        return made if dry_run else self.store.add(ref, made)

    def patch(self, ref: Ref, patch: Any, content: str, *, dry_run: bool = False) -> Object:
        """Changes an object. Raises Refusal."""
        before = self.store.get(ref)
        if content not in (MERGE, STRATEGIC):
            raise Refusal(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {content}")
        if not isinstance(patch, dict):
            raise Refusal(400, "BadRequest", "the patch is no object")
        after: Object = patched(deepcopy(before), patch, strategic=content == STRATEGIC)
        _same_object(ref, before["metadata"], after["metadata"])
        after["status"] = before.get("status", {})
        _tidy(after)
        check_change(ref.kind, before, after)
        if after["spec"] != before["spec"]:
            after["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        return after if dry_run else self._settle(ref, after)

    def change(self, ref: Ref, how: Callable[[Object], None]) -> None:
        """Changes an object from inside the cluster; nothing where it is gone."""
        before = self.store.find(ref)
        if before is not None:
            after = deepcopy(before)
            how(after)
            _tidy(after)
            self._settle(ref, after)

    def delete(self, ref: Ref, options: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Removes an object, or begins to. Raises Refusal."""
        found = self.store.get(ref)
        _preconditions(ref, found["metadata"], options.get("preconditions") or {})
        if dry_run:
            return found
        return self._end_pod(ref, found, options) if ref.kind is PODS else self._end_job(ref, found, options)

    def room_for_pod(self, namespace: str) -> bool:
        """Whether the quota lets one more pod be made."""
        return self.pod_quota is None or self._pods(namespace) < self.pod_quota

    def _pods(self, namespace: str) -> int:
        return sum(pod["status"].get("phase") not in OVER for pod in self.store.all(PODS, namespace))

    def _within_quota(self, ref: Ref) -> None:
        """Raises Refusal where one more would be too many; asked before anything else of the object is."""
        if ref.kind is JOBS and self.job_quota is not None:
            counted, used, most = "count/jobs.batch", len(self.store.all(JOBS, ref.namespace)), self.job_quota
        elif ref.kind is PODS and self.pod_quota is not None:
            counted, used, most = "pods", self._pods(ref.namespace), self.pod_quota
        else:
            return
        if used >= most:
            words = f"requested: {counted}=1, used: {counted}={used}, limited: {counted}={most}"
            message = f'{ref.kind.qualified} "{ref.name}" is forbidden: exceeded quota: sandboxes, {words}'
            raise Refusal(403, "Forbidden", message, ref.kind.details(ref.name))

    def _settle(self, ref: Ref, after: Object) -> Object:
        """Keeps the new state; one that is being deleted and that nothing holds any more goes instead."""
        meta = after["metadata"]
        held = meta.get("finalizers") or (ref.kind is PODS and meta.get("deletionGracePeriodSeconds", 0) > 0)
        if meta.get("deletionTimestamp") and not held:
            self.store.remove(ref, after)
            return after
        return self.store.change(ref, after)

    def _end_pod(self, ref: Ref, pod: Object, options: Mapping[str, Any]) -> Object:
        meta, grace = pod["metadata"], options.get("gracePeriodSeconds")
        if grace is None:
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        if not pod["spec"].get("nodeName") or pod["status"].get("phase") in OVER:
            grace = 0
        if meta.get("deletionTimestamp") and grace >= meta["deletionGracePeriodSeconds"]:
            return pod
        after = deepcopy(pod)
        self._mark(after, grace)
        return self._settle(ref, after)

    def _end_job(self, ref: Ref, job: Object, options: Mapping[str, Any]) -> Object:
        policy = options.get("propagationPolicy") or "Orphan"  # batch/v1's own, for old clients' sake
        holds = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
        after = deepcopy(job)
        if not after["metadata"].get("deletionTimestamp"):
            self._mark(after, 0)
        if policy in holds:
            finalizers = after["metadata"].setdefault("finalizers", [])
            after["metadata"]["finalizers"] = list(dict.fromkeys([*finalizers, holds[policy]]))
        kept = self._settle(ref, after)
        if self.store.find(ref) is not None:
            return kept
        details = {**ref.kind.details(ref.name), "uid": job["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _mark(self, found: Object, grace: int) -> None:
        found["metadata"]["deletionTimestamp"] = time_text(datetime.now(UTC) + timedelta(seconds=grace))
        found["metadata"]["deletionGracePeriodSeconds"] = grace


def _fresh(kind: Kind, namespace: str, body: Object) -> Object:
    """A new object out of a request's body, with what only the server says."""
    said = (body.get("kind", kind.kind), body.get("apiVersion", kind.api_version))
    if said != (kind.kind, kind.api_version):
        raise Refusal(400, "BadRequest", f"{said[1]}/{said[0]} is not a {kind.api_version}/{kind.kind}")
    made = deepcopy(body) | {"kind": kind.kind, "apiVersion": kind.api_version, "status": {}}
    meta: Object = made.setdefault("metadata", {})
    if meta.get("resourceVersion"):
        raise Refusal(400, "BadRequest", "resourceVersion should not be set on objects to be created")
    if meta.get("namespace", namespace) != namespace:
        message = "the namespace of the provided object does not match the namespace sent on the request"
        raise Refusal(400, "BadRequest", message)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = meta["generateName"] + suffix()
    for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"):
        meta.pop(name, None)
    place = {"namespace": namespace} if namespace else {}
    meta |= {**place, "uid": str(uuid4()), "creationTimestamp": now_text(), "generation": 1}
    return made


def _fill_in(kind: Kind, made: Object) -> None:
    spec, meta = made["spec"], made["metadata"]
    if kind is PODS:
        _fill_in_pod(spec)
        made["status"] = {"phase": "Pending", "qosClass": "Burstable"}
        if spec.get("schedulingGates"):
            made["status"]["conditions"] = [dict(GATED)]
        return
    own = {"job-name": meta["name"], "controller-uid": meta["uid"]}
    own |= {f"batch.kubernetes.io/{name}": value for name, value in own.items()}
    template = spec["template"].setdefault("metadata", {})
    template["labels"] = (template.get("labels") or {}) | own
    _fill_in_pod(spec["template"]["spec"])
    meta.setdefault("labels", dict(template["labels"]))
    rule = "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"
    selector = {"matchLabels": {"batch.kubernetes.io/controller-uid": meta["uid"]}}
    for name, value in {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "manualSelector": False,
        "podReplacementPolicy": rule,
        "selector": selector,
    }.items():
        spec.setdefault(name, value)


def _fill_in_pod(spec: Object) -> None:
    for name, value in {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
    }.items():
        spec.setdefault(name, value)
    for container in spec["containers"]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")


def _same_object(ref: Ref, before: Object, after: Object) -> None:
    """Raises Refusal where a patch was meant for another object, or for another state of it."""
    if after.get("uid") not in (None, "", before["uid"]):
        words = f"Precondition failed: UID in precondition: {after['uid']}, UID in object meta: {before['uid']}"
        raise conflict(ref, words)
    if after.get("resourceVersion") not in (None, "", before["resourceVersion"]):
        words = "the object has been modified; please apply your changes to the latest version and try again"
        raise conflict(ref, words)
    for name in ("uid", "resourceVersion", "name", "namespace", "creationTimestamp", "generation"):
        if name in before:
            after[name] = before[name]
    for name in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        after.pop(name, None)
        if name in before:
            after[name] = before[name]


def _preconditions(ref: Ref, meta: Object, wanted: Mapping[str, Any]) -> None:
    for name, called in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        if wanted.get(name) not in (None, meta[name]):
            words = f"the {called} in the precondition ({wanted[name]}) does not match the {called} in record "
            raise conflict(ref, f"{words}({meta[name]}). The object might have been deleted and then recreated")


def _tidy(found: Object) -> None:
    """What is empty is not said."""
    for part, names in (
        (found["metadata"], ("finalizers", "ownerReferences", "labels", "annotations")),
        (found.get("spec") or {}, ("schedulingGates", "tolerations")),
    ):
        for name in names:
            if name in part and not part[name]:
                del part[name]


def suffix() -> str:
    """Five letters, as the API server picks them."""
    return "".join(random.choices(string.ascii_lowercase.translate({ord(one): None for one in "aeioul"}), k=5))
