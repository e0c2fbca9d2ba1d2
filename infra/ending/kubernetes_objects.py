"""What the end of a stack does to objects of its cluster, and what it reads of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from shlex import quote
from typing import Any

import pulumi

from controller.backends.labels import LABEL_APP
from infra.cluster.client import ClusterClient, ClusterError, Object
from infra.cluster.naming import CONTROLLER, DESTROY_MANAGER, Naming
from infra.ending.drain import DrainProgress, Patience
from infra.waiting.workload_verdict import pull_is_permanent

NAMESPACES = "/api/v1/namespaces"
PODS = f"{NAMESPACES}/{{}}/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"
STATEFUL_SETS = "/apis/apps/v1/namespaces/{}/statefulsets"
SANDBOXES = {"app": LABEL_APP}
POLL_SECONDS = 0.5
ENDED = ("Succeeded", "Failed")  # phases of a pod none of whose containers will run again


@dataclass(frozen=True)
class Location:
    """Where a stack's objects are: the context of its cluster, and its namespaces."""

    naming: Naming
    context: str
    namespace: str
    sandbox_namespace: str

    @property
    def inside(self) -> str:
        """The command line that runs a command in a controller's container."""
        return f"kubectl --context {quote(self.context)} -n {self.namespace} exec deployment/{self.naming.name} --"


class PodNotStartedError(Exception):
    """The pod that drains does not start; the message says why."""


class StackObjects:
    """The objects of one stack, as the API server has them."""

    def __init__(self, at: Location, patience: Patience) -> None:
        self._cluster, self._patience = ClusterClient(at.context), patience
        self._name, self._namespace = at.naming.name, at.namespace
        self._labels, self._selector = at.naming.labels(CONTROLLER), at.naming.selector(CONTROLLER)
        self._deployment = f"{DEPLOYMENTS.format(at.namespace)}/{self._name}"
        self._drainer = f"{PODS.format(at.namespace)}/{self._name}-drain"

    @contextmanager
    def without_controllers(self) -> Iterator[list[str]]:
        """Stops the controllers for the block; yields the names of pods that do not stop.

        If the block fails, as many controllers as before run again.
        """
        self._cluster.delete(self._drainer, gracePeriodSeconds=0)  # of a destroy that was killed
        found = self._cluster.get(self._deployment)
        try:
            self.stop(DEPLOYMENTS, self._name, self._namespace)
            yield self.wait_for_pods(self._namespace, self._selector)
        except BaseException:
            if found is not None:
                self._start_again(max(1, found["spec"]["replicas"]))  # 0: a destroy before this one was killed
            raise

    def can_drain(self) -> bool:
        """Whether the app's namespace is there, and with it what a drain needs."""
        found = self._cluster.get(f"{NAMESPACES}/{self._namespace}")
        return found is not None and "deletionTimestamp" not in found["metadata"]

    def run(self, spec: Any, longest: float) -> Iterator[str]:
        """Runs a pod of this spec; yields the lines of its log until it ends. It is gone afterwards.

        Raises PodNotStartedError, and ClusterError if it writes nothing for `longest` seconds.
        """
        name = f"{self._name}-drain"
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": self._labels}, "spec": spec}
        self._cluster.delete(self._drainer, gracePeriodSeconds=0)
        try:
            self._cluster.create(PODS.format(self._namespace), body)
            self._wait_for_start(name)
            with DrainProgress(f"pod {name}", longest, self._patience) as progress:
                for line in self._cluster.follow(f"{self._drainer}/log", longest):
                    progress.heard(line)
                    yield line
        finally:
            self._cluster.delete(self._drainer, gracePeriodSeconds=0)

    def wait_for_pods(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        """Waits until no such pod runs, not even a terminating one; returns the names of those that stay."""
        for _ in self._looks("pods to end"):
            listed = self._cluster.items(PODS.format(namespace), labels)
            left = [str(pod["metadata"]["name"]) for pod in listed if pod["status"].get("phase") not in ENDED]
            if not left:
                break
        return left

    def delete_sandboxes(self, namespace: str) -> None:
        """Deletes every Job of sandboxes with its pods, until there is none: one that is new may get its pod yet."""
        for _ in self._looks("the sandboxes' Jobs to be deleted"):
            self._cluster.delete(JOBS.format(namespace), SANDBOXES, "Foreground")
            if not self._cluster.items(JOBS.format(namespace), SANDBOXES):
                break

    def controllers_use(self, namespace: str) -> bool:
        """Whether there are controllers that start sandboxes in that namespace."""
        found = self._cluster.get(self._deployment)
        if found is None or not found["spec"].get("replicas"):
            return False
        settings = found["spec"]["template"]["spec"]["containers"][0].get("env", ())
        return {"name": "SANDBOX_NAMESPACE", "value": namespace} in settings

    def delete_controllers(self) -> None:
        """Deletes the controllers' Deployment, as far as it is there."""
        self._cluster.delete(self._deployment)

    def stop(self, kind: str, name: str, namespace: str) -> None:
        """Scales a Deployment or StatefulSet to 0, as far as it is there, and waits until its controller has done so.

        A workload's controller may not have seen the change yet, and create the pod of the former size a moment later.
        """
        path = f"{kind.format(namespace)}/{name}"
        self._scale(path, 0)
        for _ in self._looks(f"{name} to be scaled to 0"):
            if is_scaled_down(self._cluster.get(path)):
                break

    def _scale(self, path: str, replicas: int) -> None:
        try:
            self._cluster.merge(path, {"spec": {"replicas": replicas}}, DESTROY_MANAGER)
        except ClusterError as error:
            if error.status != 404:
                raise

    def _start_again(self, replicas: int) -> None:
        """Scales the controllers up, also if the API server is away for a moment."""
        for _ in self._looks(f"the cluster, to run {replicas} controllers again"):
            try:
                self._scale(self._deployment, replicas)
            except ClusterError:
                continue
            return
        scale = f"kubectl -n {self._namespace} scale deployment {self._name} --replicas {replicas}"
        pulumi.log.warn(f"no controller runs any more; once the cluster answers: {scale}")

    def _wait_for_start(self, name: str) -> None:
        began = reported = time.monotonic()
        while (pod := self._cluster.get(f"{self._drainer}/status")) is not None and pod["status"]["phase"] == "Pending":
            why, now = why_pending(pod["status"]), time.monotonic()
            if never_starts(pod["status"]) or now - began > self._patience.start:
                raise PodNotStartedError(f"the pod {name} does not start: {why}")
            if now - reported > self._patience.report:
                pulumi.log.info(f"waiting for the pod {name} ({now - began:.0f} s): {why}")
                reported = now
            time.sleep(POLL_SECONDS)

    def _looks(self, what: str) -> Iterator[None]:
        """One look after another, for as long as the patience lasts; reports what is waited for."""
        began = reported = time.monotonic()
        while True:
            yield
            if (now := time.monotonic()) - began > self._patience.stop:
                return
            if now - reported > self._patience.report:
                pulumi.log.info(f"waiting for {what} ({now - began:.0f} s)")
                reported = now
            time.sleep(POLL_SECONDS)


def is_scaled_down(workload: Object | None) -> bool:
    """Whether a Deployment or StatefulSet is gone, or its controller has seen its size and keeps no pod."""
    if workload is None:
        return True
    status = workload.get("status") or {}
    seen = status.get("observedGeneration", 0) >= workload["metadata"]["generation"]
    return bool(seen) and not status.get("replicas")


def why_pending(status: Object) -> str:
    """Why a pod has not started, from its status."""
    for container in _waiting_containers(status):
        waiting = container["state"]["waiting"]
        return f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
    conditions = status.get("conditions", ())
    unmet = [one["message"] for one in conditions if one["status"] == "False" and one.get("message")]
    return "; ".join(unmet) or "the cluster does not say why"


def never_starts(status: Object) -> bool:
    """Whether a pod waits for an image that can never be pulled."""
    return any(
        pull_is_permanent(one["state"]["waiting"].get("reason"), one["state"]["waiting"].get("message"), one["image"])
        for one in _waiting_containers(status)
    )


def _waiting_containers(status: Object) -> list[Object]:
    return [one for one in status.get("containerStatuses", ()) if "waiting" in one["state"]]
