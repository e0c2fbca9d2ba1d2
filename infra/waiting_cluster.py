"""Waits for workloads, by asking their cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes import client
from kubernetes import config as kubeconfig

from infra.verdict_workload import Json, SeenWorkload, exits, newest_set, of_newest, speaker, verdict
from infra.waiting import GONE, Unready, until_ready

ANSWER_SECONDS = 10  # for each request
SILENT_SECONDS = 60.0  # for a cluster to answer again
LONGEST_SECONDS = 600.0  # a node may have to be made first, and a large image pulled
SKEW = timedelta(seconds=5)  # of events: those just before the wait count too
LINES = 6  # of a container's log
NO_LOG = ("unable to retrieve container logs", "failed to try resolving symlinks")  # said as if it were the log
PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "Job": "jobs"}


class ApiRefused(Exception):
    """An answer that is none of the wanted; its status says more."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"the cluster says: {words} ({status})")
        self.status = status


class ClusterWaits:
    """Waits for workloads of a context's cluster; `made` is a workload's kind, namespace, name and revision."""

    def __init__(self, context: str) -> None:
        self._context = context

    async def ready(self, made: Mapping[str, Any]) -> None:
        """Until it is rolled out or, a Job, has succeeded. Raises NotReady."""
        watched = await asyncio.to_thread(_Watched, self._context, made)

        async def look() -> Unready | None:
            try:
                return verdict(await asyncio.to_thread(watched.seen))
            except ApiRefused as error:
                if error.status == 404:
                    return Unready("gone", GONE, patience=0)
                return Unready("no answer", str(error), patience=SILENT_SECONDS)
            except (urllib3.exceptions.HTTPError, client.ApiException, OSError, ValueError) as error:
                return Unready("no answer", f"the cluster does not answer: {error}", patience=SILENT_SECONDS)

        await until_ready(f"{made['kind']} {made['name']}", look, LONGEST_SECONDS)


class _Watched:
    """One workload and what belongs to it, as the API shows them at each look."""

    def __init__(self, context: str, made: Mapping[str, Any]) -> None:
        settings = client.Configuration()
        settings.retries = False
        self._api = kubeconfig.new_client_from_config(context=context, client_configuration=settings)
        self._kind, self._name = made["kind"], made["name"]
        self._core = f"/api/v1/namespaces/{made['namespace']}"
        group = "batch" if self._kind == "Job" else "apps"
        self._own = f"/apis/{group}/v1/namespaces/{made['namespace']}"
        self._began: datetime | None = None  # by the cluster's clock
        self._exits_before: dict[str, int] | None = None

    def seen(self) -> SeenWorkload:
        """What there is now. Raises ApiRefused."""
        workload: Json = {"kind": self._kind, **self._get(f"{self._own}/{PLURALS[self._kind]}/{self._name}")}
        chosen = ",".join(f"{key}={value}" for key, value in workload["spec"]["selector"]["matchLabels"].items())
        sets = self._items(f"{self._own}/replicasets", chosen) if self._kind == "Deployment" else []
        pods = of_newest(workload, sets, self._items(f"{self._core}/pods", chosen))
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
        found = [one for uid in sorted(uids) for one in self._optional("events", {"fieldSelector": _about(uid)})]
        return sorted((one for one in found if self._is_new(one)), key=_at)

    def _is_new(self, event: Json) -> bool:
        return self._began is None or _at(event) >= self._began - SKEW

    def _lines(self, pod: str, container: str, previous: bool) -> Sequence[str]:
        query = {"container": container, "tailLines": str(LINES), "previous": str(previous).lower()}
        try:
            text = self._text(f"{self._core}/pods/{pod}/log", query)
        except ApiRefused:
            return ()  # no right to it, or none is left
        return () if text.startswith(NO_LOG) else text.splitlines()

    def _optional(self, resource: str, query: Mapping[str, str]) -> list[Json]:
        try:
            found: list[Json] = json.loads(self._text(f"{self._core}/{resource}", query))["items"]
        except ApiRefused as error:
            if error.status == 403:
                return []
            raise
        return found

    def _items(self, path: str, selector: str) -> list[Json]:
        found: list[Json] = json.loads(self._text(path, {"labelSelector": selector}))["items"]
        return found

    def _get(self, path: str) -> Json:
        found: Json = json.loads(self._text(path, {}))
        return found

    def _text(self, path: str, query: Mapping[str, str]) -> str:
        verb, url, headers, _, _ = self._api.param_serialize(
            "GET", path, query_params=list(query.items()), header_params={}, auth_settings=["BearerToken"]
        )
        answer = self._api.call_api(verb, url, headers, _request_timeout=ANSWER_SECONDS)
        raw = answer.read() or b""
        if self._began is None and (date := answer.getheader("Date")):
            self._began = parsedate_to_datetime(date)
        if answer.status >= 300:
            raise ApiRefused(answer.status, _words(raw))
        return raw.decode(errors="replace")


def _about(uid: str) -> str:
    return f"involvedObject.uid={uid}"


def _claims(workload: Json) -> list[str]:
    volumes = workload["spec"]["template"]["spec"].get("volumes") or ()
    return [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]


def _at(event: Json) -> datetime:
    """When it was last seen."""
    series = event.get("series") or {}
    last = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return datetime.fromisoformat(last or event["metadata"]["creationTimestamp"])


def _words(raw: bytes) -> str:
    """What the API says in an error's body."""
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw.decode(errors="replace").strip()[:200] or "an error without a word"
