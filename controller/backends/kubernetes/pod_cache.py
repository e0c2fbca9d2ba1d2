"""Caches the last known state of this installation's pods, whatever the order in which versions arrive."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from controller.backends.http_json import Json
from controller.backends.kubernetes import pod_status
from controller.backends.kubernetes.manifest import RECORDED
from controller.backends.labels import key_of
from controller.protocol.model import Key, Listing, ObservedRun, Phase

RECORDED_SECONDS = 900.0  # after which a recorded Job that still exists is listed again, to be swept


@dataclass(frozen=True, slots=True)
class PodRecord:
    """The fields of a pod that are needed later."""

    name: str
    job_uid: str  # empty if it has no Job
    version: int
    observed: ObservedRun
    deleting: bool  # its deletion was requested


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The fields of a Job that are needed later."""

    key: Key
    uid: str
    created_at: datetime
    recorded: float | None  # when its outcome was marked as written to the table: seconds since 1970
    deleting: bool  # its deletion was requested


def pod_record(pod: Json, installation: str, *, gone: bool = False) -> PodRecord | None:
    """The record of a pod, or None if it is not of that installation; `gone`: it was deleted."""
    meta = pod["metadata"]
    key = key_of(meta.get("labels"), installation)
    if key is None or not meta["name"].startswith(f"{key.name}-"):
        return None
    look = pod_status.last_observed_run(pod, key) if gone else pod_status.observed_run(pod, key)
    return PodRecord(meta["name"], pod_status.owner(pod), _version(meta), look, pod_status.is_being_deleted(pod))


def job_record(job: Json, installation: str) -> JobRecord | None:
    """The record of a Job, from its metadata, or None if it is not of that installation."""
    meta = job["metadata"]
    key = key_of(meta.get("labels"), installation)
    if key is None or meta["name"] != key.name:
        return None
    recorded = str((meta.get("annotations") or {}).get(RECORDED, ""))
    return JobRecord(
        key,
        meta["uid"],
        datetime.fromisoformat(meta["creationTimestamp"]),
        float(recorded) if recorded.isascii() and recorded.isdigit() else None,
        bool(meta.get("deletionTimestamp")),
    )


class PodCache:
    """The known pods, and which Jobs are recorded. It can be rebuilt from a list."""

    def __init__(self) -> None:
        self._runs: dict[Key, dict[str, PodRecord]] = {}
        self._recorded: dict[str, float] = {}  # Jobs whose outcome is in the table, by uid, and since when
        self._jobs_without_pod: set[str] = set()  # uids of Jobs that have had no pod yet

    def update(self, run: PodRecord, *, gone: bool = False, listed: bool = False) -> ObservedRun | None:
        """Updates the cache; returns the run if it changed.

        A listed pod replaces a newer version too: etcd may have been restored from a backup.
        """
        key, uid = run.observed.key, run.observed.run_uid
        self._jobs_without_pod.discard(run.job_uid)
        known = self._runs.get(key, {}).get(uid)
        if known is not None and known.version > run.version and not listed:
            return None
        if known is not None and run.observed.phase is Phase.NEVER_STARTED and known.observed.waiting:
            run = replace(run, observed=_still_waiting(run.observed, known.observed))
        if gone:
            self._forget(key, uid)
            return run.observed
        self._runs.setdefault(key, {})[uid] = run
        return run.observed if known is None or known.observed != run.observed else None

    def update_job(self, job: JobRecord, *, gone: bool) -> ObservedRun | None:
        """Updates the cache. A Job that was deleted before it had a pod is reported as a run with the Job's uid."""
        if not gone:
            if all(run.job_uid != job.uid for run in self.of(job.key).values()):
                self._jobs_without_pod.add(job.uid)
            return None
        had_no_pod = job.uid in self._jobs_without_pod
        self._jobs_without_pod.discard(job.uid)
        return ObservedRun(job.key, job.uid, Phase.NEVER_STARTED) if had_no_pod else None

    def of(self, key: Key) -> Mapping[str, PodRecord]:
        """The pods of an attempt, by uid."""
        return self._runs.get(key, {})

    def record(self, job_uid: str) -> None:
        """Notes that the Job's outcome is in the table, and that the cluster will remove it."""
        self._recorded[job_uid] = time.time()

    def is_recorded(self, job_uid: str) -> bool:
        """Whether that Job's outcome is in the table, however long ago."""
        return job_uid in self._recorded

    def is_hidden(self, job_uid: str) -> bool:
        """Whether that Job counts as gone: it is recorded, and its removal by the cluster is not overdue."""
        return time.time() - self._recorded.get(job_uid, 0.0) < RECORDED_SECONDS

    def listing(self, begun: float, jobs: Collection[JobRecord], uids: Collection[str]) -> Listing:
        """The listing of these Jobs, which were listed first, and of the pods with these uids, already in the cache."""
        there = {job.uid: job.recorded for job in jobs if job.recorded is not None}
        self._recorded = {uid: at for uid, at in self._recorded.items() if self.is_hidden(uid)} | there
        for key in list(self._runs):
            for uid in self._runs[key].keys() - uids:
                self._forget(key, uid)
        self._jobs_without_pod = {job.uid for job in jobs if job.key not in self._runs}
        runs = [run for runs in self._runs.values() for run in runs.values()]
        shown = [run.observed for run in runs if not self.is_hidden(run.job_uid)]
        recorded = [run.observed for run in runs if self.is_hidden(run.job_uid)]
        pending = {
            job.key: None
            for job in jobs
            if job.key not in self._runs and not job.deleting and not self.is_hidden(job.uid)
        }
        return Listing(tuple(shown), begun, pending, tuple(recorded))

    def _forget(self, key: Key, uid: str) -> None:
        runs = self._runs.get(key, {})
        runs.pop(uid, None)
        if not runs:
            self._runs.pop(key, None)


def _still_waiting(seen: ObservedRun, before: ObservedRun) -> ObservedRun:
    """A run that never started, with the last explanation of why it waited."""
    return replace(seen, waiting=before.waiting, timeout_reason=before.timeout_reason, permanent=before.permanent)


def _version(meta: Json) -> int:
    """Versions of one kind grow: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions"""
    version = str(meta.get("resourceVersion", ""))
    return int(version) if version.isascii() and version.isdigit() else 0
