"""Waits for workloads, by asking their cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from controller.backends.kubernetes.logs import KUBELET_ERROR
from infra.cluster.client import ClusterClient, ClusterError, ForbiddenError
from infra.waiting.readiness import GONE, Unready, until_ready
from infra.waiting.workload_verdict import Json, SeenWorkload, exits, newest_set, of_newest, speaker, verdict

SILENT_SECONDS = 60.0  # for a cluster to answer again
LONGEST_SECONDS = 600.0  # a node may have to be added first, and a large image pulled
SKEW = timedelta(seconds=5)  # of events: those just before the wait count too
LINES = 6  # of a container's log
PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "Job": "jobs"}


class ClusterWaits:
    """Waits for workloads of a context's cluster. `subject` has a workload's kind, namespace, name and revision."""

    def __init__(self, context: str) -> None:
        self._context = context

    async def ready(self, subject: Mapping[str, Any]) -> None:
        """Waits until the workload is rolled out; a Job, until it has succeeded. Raises NotReadyError."""
        watched = await asyncio.to_thread(_Watched, self._context, subject)

        async def look() -> Unready | None:
            try:
                return verdict(await asyncio.to_thread(watched.seen))
            except ClusterError as error:
                if error.status == 404:
                    return Unready("gone", GONE, patience=0)
                return Unready("no answer", str(error), patience=SILENT_SECONDS)

        await until_ready(f"{subject['kind']} {subject['name']}", look, LONGEST_SECONDS)


class _Watched:
    """One workload and the objects that belong to it, as the API shows them at each look."""

    def __init__(self, context: str, subject: Mapping[str, Any]) -> None:
        self._cluster = ClusterClient(context)
        self._kind, self._name = subject["kind"], subject["name"]
        self._core = f"/api/v1/namespaces/{subject['namespace']}"
        group = "batch" if self._kind == "Job" else "apps"
        self._own = f"/apis/{group}/v1/namespaces/{subject['namespace']}"
        self._began: datetime | None = None  # by the cluster's clock
        self._exits_before: dict[str, int] | None = None

    def seen(self) -> SeenWorkload:
        """The workload with its objects as they are now. Raises ClusterError."""
        workload: Json = {"kind": self._kind, **self._get(f"{self._own}/{PLURALS[self._kind]}/{self._name}")}
        chosen = workload["spec"]["selector"]["matchLabels"]
        sets = self._cluster.items(f"{self._own}/replicasets", chosen) if self._kind == "Deployment" else []
        pods = of_newest(workload, sets, self._cluster.items(f"{self._core}/pods", chosen))
        if self._exits_before is None:
            self._exits_before = {pod["metadata"]["uid"]: exits(pod) for pod in pods}
        claims = [self._get(f"{self._core}/persistentvolumeclaims/{name}") for name in _claims(workload)]
        abouts = [workload, newest_set(workload, sets) or {}, *pods, *claims]
        uids = {one["metadata"]["uid"] for one in abouts if one}
        said = speaker(pods)
        return SeenWorkload(
            workload, pods, self._events(uids), claims, self._lines(*said) if said else (), self._exits_before
        )

    def _events(self, uids: set[str]) -> list[Json]:
        found = [one for uid in sorted(uids) for one in self._optional("events", f"involvedObject.uid={uid}")]
        return sorted((one for one in found if self._is_new(one)), key=_at)

    def _is_new(self, event: Json) -> bool:
        return self._began is None or _at(event) >= self._began - SKEW

    def _lines(self, pod: str, container: str, previous: bool) -> Sequence[str]:
        query = {"container": container, "tailLines": str(LINES), "previous": str(previous).lower()}
        try:
            text = self._cluster.text("GET", f"{self._core}/pods/{pod}/log", query=query)
        except ClusterError:
            return ()  # no right to it, or none is left
        return () if KUBELET_ERROR.fullmatch(text.strip()) else text.splitlines()

    def _optional(self, resource: str, fields: str) -> Sequence[Json]:
        try:
            return self._cluster.items(f"{self._core}/{resource}", fields=fields)
        except ForbiddenError:
            return []

    def _get(self, path: str) -> Json:
        found = self._cluster.read(path)
        self._began = self._began or self._cluster.clock
        return found


def _claims(workload: Json) -> list[str]:
    volumes = workload["spec"]["template"]["spec"].get("volumes") or ()
    return [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]


def _at(event: Json) -> datetime:
    """When the event was last seen."""
    series = event.get("series") or {}
    last = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return datetime.fromisoformat(last or event["metadata"]["creationTimestamp"])
