"""Runs attempts as Jobs of a Kubernetes namespace: the protocol's verbs.

Beside this file, `manifest` is what is asked and `pod_status` what the answers mean, both pure; `api` sends, `objects`
changes single objects, `watch` follows them all, `pod_cache` remembers the last state of each, `logs` reads output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from controller.backends.http_json import Json, ResponseError, transient_errors, verb
from controller.backends.kubernetes import manifest, pod_status
from controller.backends.kubernetes.api import Api, ApiConfig
from controller.backends.kubernetes.errors import creation_error, is_no_room, why_no_pod
from controller.backends.kubernetes.logs import Logs
from controller.backends.kubernetes.objects import Objects, is_finished
from controller.backends.kubernetes.options import JobOptions
from controller.backends.kubernetes.pod_cache import JobRecord, PodCache, PodRecord, job_record, pod_record
from controller.backends.kubernetes.watch import Event, Events, Feed
from controller.errors import (
    BackendClosedError,
    BackendUnavailableError,
    EngineError,
    RequestRejectedError,
    RunNotFoundError,
    TransientEngineError,
)
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output, Phase

RELIST_SECONDS = 30.0
REMOVAL_SECONDS = 10.0  # for which `delete` waits; the removal goes on without it
REMOVAL_PAUSES = (0.2, 2.0)  # seconds between looks at it: the first, and the longest
KILL_TRIES = 5  # of one kill, of a pod that changes before it can be ended
SLOW_SECONDS = 10.0  # after which a Job without a pod is looked at for the cause
EXPLAINED_AT_ONCE = 10  # such Jobs in a listing
PROBE = Launch(Key(UUID(int=0), 1), "true", 1)


class KubernetesBackend:
    """Jobs of one namespace. `image` is for launches that name none; `start_deadline` in seconds.

    `kubeconfig` None: the pod's service account, else what KUBECONFIG names.
    """

    # A cluster has a queue of its own: its controller-manager creates some ten pods a second, and more if many Jobs
    # exist at once.
    at_once, launching = 64, 1000

    def __init__(
        self,
        namespace: str,
        image: str,
        *,
        options: JobOptions | None = None,
        start_deadline: float = 600.0,
        output_bytes: int = 1 << 20,
        list_seconds: float = RELIST_SECONDS,
        kubeconfig: str | None = None,
        api: ApiConfig | None = None,
    ) -> None:
        self.marks = None  # the Role permits no object that could hold them
        self._image, self._options, self._start_deadline = image, options or JobOptions(), start_deadline
        self._list_seconds = list_seconds
        self._api = Api(namespace, kubeconfig, api)
        self._logs = Logs(self._api, output_bytes)
        self._opened: Objects | None = None
        self._pods = PodCache()
        self._removing: set[Key] = set()  # attempts that we remove: nobody will ask for their output

    async def open(self, installation: UUID) -> str:
        objects = Objects(self._api, str(installation))
        try:
            identity = await self._api.identity()
            await self._try_out(objects)
        except RequestRejectedError as error:
            message = f"the namespace {self._api.namespace} refuses every Job, or SANDBOX_JOB_OPTIONS is wrong: {error}"
            raise BackendUnavailableError(message) from error
        except EngineError as error:
            raise BackendUnavailableError(str(error)) from error
        self._opened = objects
        return f"kubernetes:{identity}"

    async def ping(self) -> None:
        objects = self._objects
        try:
            await self._find_one("jobs", objects)
        except EngineError as error:
            raise BackendUnavailableError(str(error)) from error

    @verb
    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        if look and (job := await self._objects.job(launch.key)) is not None:
            return await self._find_existing(launch.key, job)
        try:
            await self._api.send("POST", "jobs", body=self._manifest(launch, self._objects))
        except ResponseError as error:
            if error.status == 409 and (job := await self._objects.job(launch.key)) is not None:
                return await self._find_existing(launch.key, job)
            raise creation_error(error, self._api.namespace) from error
        return None  # `observe` yields its pod

    @verb
    async def release(self, key: Key, run_uid: str) -> None:
        run = await self._run(key, run_uid)
        if run is None:
            raise RunNotFoundError(f"the cluster has no pod {run_uid} of {key.name}")
        try:
            await self._objects.ungate(run.name, run_uid)
        except ResponseError as error:
            if error.status in (404, 409) and await self._objects.pod(run.name, run_uid) is None:
                raise RunNotFoundError(error.message) from error
            raise

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        with transient_errors():
            while True:
                feeds = [Feed(self._api, kind, self._objects.selector()) for kind in ("jobs", "pods")]
                yield await self._list(feeds)
                events = Events(feeds)
                try:
                    relist_at = time.monotonic() + self._list_seconds
                    while events.whole:
                        left = relist_at - time.monotonic()
                        if left <= 0:
                            yield await self._list(feeds)
                            relist_at = time.monotonic() + self._list_seconds
                        elif (event := await events.next(left)) is not None:
                            seen = await self._seen(event)
                            if seen is not None:
                                yield seen
                finally:
                    await events.stop()

    @verb
    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        run = await self._run(key, run_uid)
        try:
            if run is None or self._pods.is_hidden(run.job_uid):
                raise RunNotFoundError(f"the cluster has no pod {run_uid} of {key.name}")
            return await self._logs.read(run.name, manifest.first_line(key), limit)
        except RunNotFoundError:
            saved = await self._logs.saved(run_uid)
            if saved is None:
                raise
            return saved

    @verb
    async def kill(self, key: Key, run_uid: str) -> None:
        run = await self._run(key, run_uid)
        if run is None:
            return
        for _ in range(KILL_TRIES):
            pod = await self._objects.pod(run.name, run_uid)
            if pod is None or pod_status.observed_run(pod, key).phase in pod_status.OVER:
                return
            if await self._objects.end(pod):
                return
        raise TransientEngineError(f"the pod of {key.name} changed whenever it was to be ended")

    @verb
    async def delete(self, key: Key, run_uid: str | None) -> None:
        if run_uid is not None:
            self._logs.drop(run_uid)
            if await self._let_expire(key, run_uid):
                return
        deadline, (pause, longest) = time.monotonic() + REMOVAL_SECONDS, REMOVAL_PAUSES
        self._removing.add(key)
        try:
            while not await self._objects.remove(key, run_uid):
                if time.monotonic() > deadline:
                    raise TransientEngineError(f"the Job {key.name} is still being removed")
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, longest)
        finally:
            self._removing.discard(key)

    async def close(self) -> None:
        self._opened = None
        await self._logs.close()
        await self._api.close()

    @property
    def _objects(self) -> Objects:
        if self._opened is None:
            raise BackendClosedError
        return self._opened

    async def _try_out(self, objects: Objects) -> None:
        """Checks by a dry run that we may create Jobs and list pods. A full quota is not a fault."""
        try:
            await self._api.send("POST", "jobs", query={"dryRun": "All"}, body=self._manifest(PROBE, objects))
        except ResponseError as error:
            if not is_no_room(error):
                raise creation_error(error, self._api.namespace) from error
        for kind in ("jobs", "pods"):
            await self._find_one(kind, objects)

    async def _find_one(self, kind: str, objects: Objects) -> None:
        await self._api.json("GET", kind, query={"limit": "1", "labelSelector": objects.selector()})

    def _manifest(self, launch: Launch, objects: Objects) -> dict[str, Any]:
        image = self._image if launch.image is None else launch.image
        return manifest.job_manifest(launch, image, objects.installation, self._options, self._start_deadline)

    async def _find_existing(self, key: Key, job: Json) -> ObservedRun | None:
        """The attempt's run, if its Job has one already."""
        if job["metadata"].get("deletionTimestamp"):
            raise TransientEngineError(f"the Job {key.name} is being deleted: its name is not free yet")
        runs = [run.observed for run in (await self._objects.pods(key)).values()]
        return next((seen for seen in runs if seen.phase is not Phase.INERT), runs[0] if runs else None)

    async def _run(self, key: Key, run_uid: str) -> PodRecord | None:
        return self._pods.of(key).get(run_uid) or (await self._objects.pods(key)).get(run_uid)

    async def _let_expire(self, key: Key, run_uid: str) -> bool:
        """Leaves an ended run's removal to the cluster, after a time for people to inspect it. False if it cannot."""
        runs = self._pods.of(key)
        run = runs.get(run_uid)
        if run is None or len(runs) > 1 or not run.job_uid or run.observed.phase is not Phase.ENDED:
            return False
        if self._pods.is_recorded(run.job_uid):  # listed again, it was not removed by the cluster: we do it
            return self._pods.is_hidden(run.job_uid)
        if not await self._objects.let_expire(key, run.job_uid):
            return False
        self._pods.record(run.job_uid)
        return True

    async def _list(self, feeds: Sequence[Feed]) -> Listing:
        """Lists Jobs before pods, so that a Job created in between does not look like one without a pod."""
        begun, installation, uids = time.monotonic(), self._objects.installation, set[str]()
        made = [job_record(job, installation) async for page in feeds[0].pages() for job in page]
        async for page in feeds[1].pages():
            for run in (pod_record(pod, installation) for pod in page):
                if run is not None:
                    self._save(run)
                    self._pods.update(run, listed=True)
                    uids.add(run.observed.run_uid)
        ours = [job for job in made if job is not None]
        listing = self._pods.listing(begun, ours, uids)
        return await self._explained(listing, ours) if listing.pending else listing

    async def _explained(self, listing: Listing, made: Sequence[JobRecord]) -> Listing:
        """Adds explanations for Jobs that have had no pod for a while. A finished Job will never have one."""
        now, pending, never = datetime.now(UTC), dict(listing.pending), list[ObservedRun]()
        slow = [job for job in made if job.key in pending and (now - job.created_at).total_seconds() > SLOW_SECONDS]
        for job in sorted(slow, key=lambda one: one.created_at)[:EXPLAINED_AT_ONCE]:
            found = await self._api.find(f"jobs/{job.key.name}")
            if found is not None and is_finished(found):
                never.append(ObservedRun(job.key, job.uid, Phase.NEVER_STARTED))
            elif found is not None:
                pending[job.key] = why_no_pod(found)
        return replace(listing, runs=(*listing.runs, *never), pending=pending)

    async def _seen(self, event: Event) -> ObservedRun | None:
        """The run that an event changed, or None if nothing changed."""
        if event.kind == "jobs":
            job = job_record(event.object, self._objects.installation)
            return self._pods.update_job(job, gone=event.gone) if job is not None else None
        run = pod_record(event.object, self._objects.installation, gone=event.gone)
        if run is None:
            return None
        if (
            event.gone
            and run.observed.phase is not Phase.ENDED
            and await self._objects.pod(run.name, run.observed.run_uid)
        ):
            return None  # it exists: somebody changed the labels that we select by
        self._save(run)
        return self._pods.update(run, gone=event.gone)

    def _save(self, run: PodRecord) -> None:
        """Saves the log of a run that somebody else deletes while it runs, before its node drops it."""
        key, before = run.observed.key, self._pods.of(run.observed.key).get(run.observed.run_uid)
        news = run.deleting and not (before is not None and before.deleting)
        if news and run.observed.phase is Phase.RUNNING and key not in self._removing:
            self._logs.save(run.observed.run_uid, run.name, manifest.first_line(key))
