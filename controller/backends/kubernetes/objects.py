"""Finds, changes and removes single Jobs and pods of one installation, by uid."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from controller.backends.http_json import Json, ResponseError
from controller.backends.kubernetes import manifest, pod_status
from controller.backends.kubernetes.api import MERGE, STRATEGIC, Api
from controller.backends.kubernetes.pod_cache import PodRecord, pod_record
from controller.backends.labels import key_of, selectors
from controller.errors import RequestRejectedError
from controller.protocol.model import Key, Reason

UNRESPONSIVE_SECONDS = 120.0  # past the deadline of a pod's deletion, after which its node counts as unresponsive


class Objects:
    """Requests for single objects. No object of another installation is read or changed."""

    def __init__(self, api: Api, installation: str) -> None:
        self._api, self.installation = api, installation

    def selector(self, key: Key | None = None) -> str:
        """The label selector for all of this installation's objects, or for one attempt's."""
        return ",".join(selectors(self.installation, key))

    async def job(self, key: Key) -> Json | None:
        """The attempt's Job, or None. Raises RequestRejectedError if a foreign Job has its name."""
        job = await self._api.find(f"jobs/{key.name}")
        if job is not None and key_of(job["metadata"].get("labels"), self.installation) != key:
            message = f"a Job {key.name} that is not this installation's is in the way: remove or rename it"
            raise RequestRejectedError(Reason.NAME_CONFLICT, message)
        return job

    async def pods(self, key: Key) -> dict[str, PodRecord]:
        """The attempt's pods, from the API, by uid."""
        found: dict[str, PodRecord] = {}
        async for page, _ in self._api.pages("pods", {"labelSelector": self.selector(key)}):
            looks = (pod_record(pod, self.installation) for pod in page)
            found |= {run.observed.run_uid: run for run in looks if run is not None and run.observed.key == key}
        return found

    async def pod(self, name: str, run_uid: str) -> Json | None:
        """That pod, or None if it is gone."""
        pod = await self._api.find(f"pods/{name}")
        return pod if pod is not None and pod["metadata"]["uid"] == run_uid else None

    async def ungate(self, name: str, run_uid: str) -> None:
        """Removes our gate, so that the pod can be scheduled."""
        await self._api.send("PATCH", f"pods/{name}", body=manifest.ungate(run_uid), content=STRATEGIC)

    async def end(self, pod: Json) -> bool:
        """Ends a pod, and keeps it if possible, for its state and log; false if it has changed since it was read."""
        meta = pod["metadata"]
        path, late = f"pods/{meta['name']}", pod_status.overdue(pod, datetime.now(UTC))
        if late is not None and late > UNRESPONSIVE_SECONDS:  # nobody is left to report its end
            await self._remove(path, meta["uid"], gracePeriodSeconds=0)
        elif not pod["spec"].get("nodeName"):  # on a node meanwhile, it would begin, and look deleted by a stranger
            return await self._remove(path, meta["uid"], as_of=meta["resourceVersion"])
        elif late is None and pod_status.is_silent(pod) and pod_status.is_ended_by_us(pod):
            await self._remove(path, meta["uid"])  # its node did not react; once the deletion is overdue, it is forced
        elif late is None:
            await self._api.send("PATCH", path, body=manifest.end_now(meta["uid"]), content=MERGE)
        return True

    async def let_expire(self, key: Key, job_uid: str) -> bool:
        """Leaves the removal of that Job to the cluster; false if it is gone already."""
        body = manifest.recorded(job_uid, time.time())
        return await self._sent("PATCH", f"jobs/{key.name}", body=body, content=MERGE)

    async def remove(self, key: Key, run_uid: str | None) -> bool:
        """Takes the next step of the removal of that run, or of the whole attempt; true once nothing is left of it."""
        try:
            job = await self.job(key)
        except RequestRejectedError:  # a foreign Job
            job = None
        runs = await self.pods(key)
        if run_uid is not None:
            if any(uid != run_uid for uid in runs):
                return await self._remove_beside(runs.get(run_uid), run_uid)
            if not runs and job is not None and not is_finished(job):
                return True  # its pod may still appear: the sweep removes such a Job
        if job is not None and not job["metadata"].get("deletionTimestamp"):
            await self._remove(f"jobs/{key.name}", job["metadata"]["uid"])
        for uid, run in runs.items():
            if not run.deleting and (job is None or run.job_uid != job["metadata"]["uid"]):
                await self._remove(f"pods/{run.name}", uid)
        return job is None and not runs

    async def _remove_beside(self, run: PodRecord | None, run_uid: str) -> bool:
        """Removes one pod of a Job and keeps the Job's other pod."""
        if run is None:
            return True
        await self._sent("PATCH", f"pods/{run.name}", body=manifest.disown(run_uid), content=MERGE)
        await self._remove(f"pods/{run.name}", run_uid)
        return False

    async def _remove(self, path: str, uid: str, *, as_of: str | None = None, **more: int) -> bool:
        """Deletes that object; false if it is gone, or, with the resource version `as_of`, if it has changed since."""
        return await self._sent("DELETE", path, body=manifest.deletion(uid, as_of) | more)

    async def _sent(self, method: str, path: str, **more: Any) -> bool:
        """Sends it; false if that object is gone, or another object has its name now."""
        try:
            await self._api.send(method, path, **more)
        except ResponseError as error:
            if error.status in (404, 409):
                return False
            raise
        return True


def is_finished(job: Json) -> bool:
    """Whether this Job has ended, and creates no more pods."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
