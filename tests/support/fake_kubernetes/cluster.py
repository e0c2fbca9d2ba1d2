"""A pretended cluster: its objects, its controllers, and what may befall them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from tests.support.fake_kubernetes.controllers import Collector, JobController, Scheduler, finished
from tests.support.fake_kubernetes.kubelet import Kubelet
from tests.support.fake_kubernetes.registry import OVER, Registry
from tests.support.fake_kubernetes.store import JOBS, NAMESPACES, PODS, Event, Kind, Object, Ref, Store, now_text


class FakeCluster:
    """Outlives the API servers in front of it. Its methods are about one namespace, and need a running event loop.

    Seconds: `job_delay` before a Job's pod is made, `start_delay` before a container runs, `ttl_factor` for each
    second of a finished Job's ttlSecondsAfterFinished (None: `expire` alone removes them).
    """

    def __init__(
        self,
        namespace: str = "ci-fixer-sandboxes",
        *,
        job_delay: float = 0.0,
        start_delay: float = 0.0,
        ttl_factor: float | None = None,
        job_quota: int | None = None,
        pod_quota: int | None = None,
    ) -> None:
        self.namespace, self.ttl_factor = namespace, ttl_factor
        self.store = Store()
        self.registry = Registry(self.store)
        self.registry.job_quota, self.registry.pod_quota = job_quota, pod_quota
        self.requests: Counter[tuple[str, str]] = Counter()  # by verb and resource, faulted ones too
        for name in sorted({"default", "kube-system", namespace}):
            self.add_namespace(name)
        self.job_controller = JobController(self.registry, job_delay)
        self.collector = Collector(self.registry, self.job_controller)
        self.scheduler = Scheduler(self.registry)
        self.kubelet = Kubelet(self.registry, start_delay)
        self.store.listeners.append(self._expire_in_time)

    @property
    def starts(self) -> Counter[tuple[str, str]]:
        """How often commands were started, by the pod's labels sandboxId and attempt."""
        return self.kubelet.starts

    @property
    def job_quota(self) -> int | None:
        """How many Jobs a namespace may have."""
        return self.registry.job_quota

    @job_quota.setter
    def job_quota(self, most: int | None) -> None:
        self.registry.job_quota = most

    @property
    def pod_quota(self) -> int | None:
        """How many pods that are not over a namespace may have."""
        return self.registry.pod_quota

    @pod_quota.setter
    def pod_quota(self, most: int | None) -> None:
        self.registry.pod_quota = most
        self.resync()

    def add_namespace(self, name: str) -> None:
        """One more namespace."""
        self.registry.create(NAMESPACES, "", {"metadata": {"name": name}})

    def resync(self) -> None:
        """Every controller looks at everything again, as after one was off."""
        for ref in self.store.refs():
            for controller in (self.job_controller, self.collector, self.scheduler, self.kubelet):
                controller.enqueue(ref)

    async def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        """Waits until this is true of the cluster or its requests. Raises TimeoutError."""
        await self.store.news.until(true, seconds)

    def job(self, name: str) -> Object | None:
        """A Job as it is now."""
        return self.store.find(self._ref(JOBS, name))

    def pod(self, name: str) -> Object | None:
        """A pod as it is now."""
        return self.store.find(self._ref(PODS, name))

    def pods(self, job: str | None = None) -> list[Object]:
        """All pods, or those that say they are that Job's."""
        if job is None:
            return self.store.all(PODS, self.namespace)
        return [pod for _, pod in self.job_controller.pods(self._ref(JOBS, job))]

    def jobs(self) -> list[Object]:
        """All Jobs."""
        return self.store.all(JOBS, self.namespace)

    def create(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """Somebody else makes an object."""
        return self.registry.create(kind, self.namespace, dict(body))

    def delete(self, kind: Kind, name: str, **options: Any) -> None:
        """Somebody else deletes an object, with these DeleteOptions."""
        self.registry.delete(self._ref(kind, name), options)

    def remove(self, kind: Kind, name: str) -> None:
        """An object goes by force and at once, whatever holds it."""
        self.store.remove(self._ref(kind, name))

    def change(self, kind: Kind, name: str, how: Callable[[Object], None]) -> None:
        """Changes an object in any way."""
        self.registry.change(self._ref(kind, name), how)

    def make_pod(self, job: str) -> Object:
        """The Job controller's step by hand: a pod."""
        return self.store.get(self.job_controller.make_pod(self._ref(JOBS, job)))

    def double(self, job: str) -> Object:
        """The Job controller makes one pod too many; it stays."""
        return self.make_pod(job)

    def start(self, pod: str) -> None:
        """The kubelet's step by hand: the container of a scheduled pod runs."""
        self.kubelet.start(self._ref(PODS, pod))

    def end(self, pod: str, code: int, *lines: str) -> None:
        """The kubelet's step by hand: the container ends, with these lines as its termination message."""
        self.kubelet.end(self._ref(PODS, pod), code, list(lines))

    def set_status(self, pod: str, status: Mapping[str, Any]) -> None:
        """Puts these parts of a pod's status in the place of its own."""
        self.change(PODS, pod, lambda found: found["status"].update(deepcopy(dict(status))))

    def set_log(self, pod: str, log: bytes) -> None:
        """What a pod has written."""
        self.kubelet.logs[self.store.get(self._ref(PODS, pod))["metadata"]["uid"]] = log

    def evict(self, pod: str) -> None:
        """Somebody has a pod put out, as a drain of its node does."""
        self._disrupt(self._ref(PODS, pod), "EvictionByEvictionAPI", "Eviction API: evicting", {})
        self.delete(PODS, pod)

    def node_lost(self) -> None:
        """The node goes, and with it all that ran there; nobody can say how it ended."""
        for pod in self.pods():
            if pod["spec"].get("nodeName"):
                ref = self._ref(PODS, pod["metadata"]["name"])
                self.kubelet.forget(pod["metadata"]["uid"])
                if pod["status"].get("phase") not in OVER:
                    self._disrupt(ref, "DeletionByPodGC", "PodGC: node no longer exists", {"phase": "Failed"})
                self.registry.delete(ref, {"gracePeriodSeconds": 0})

    def expire(self) -> int:
        """Removes finished Jobs that have a ttl; how many."""
        due = [job for job in self.jobs() if finished(job) and "ttlSecondsAfterFinished" in job["spec"]]
        for job in due:
            self.delete(JOBS, job["metadata"]["name"], propagationPolicy="Foreground")
        return len(due)

    def _ref(self, kind: Kind, name: str) -> Ref:
        return Ref(kind, self.namespace, name)

    def _disrupt(self, ref: Ref, reason: str, message: str, more: Object) -> None:
        told = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}

        def change(pod: Object) -> None:
            kept = pod["status"].get("conditions", ())
            pod["status"] |= {"conditions": [*kept, {**told, "lastTransitionTime": now_text()}], **more}

        self.registry.change(ref, change)

    def _expire_in_time(self, event: Event) -> None:
        seconds = event.object.get("spec", {}).get("ttlSecondsAfterFinished")
        if event.ref.kind is not JOBS or event.type == "DELETED" or self.ttl_factor is None or seconds is None:
            return
        if finished(event.object):
            uid = event.object["metadata"]["uid"]
            asyncio.get_running_loop().call_later(seconds * self.ttl_factor, self._expire_one, event.ref, uid)

    def _expire_one(self, ref: Ref, uid: str) -> None:
        job = self.store.find(ref)
        if job is not None and job["metadata"]["uid"] == uid and not job["metadata"].get("deletionTimestamp"):
            self.registry.delete(ref, {"propagationPolicy": "Foreground"})
