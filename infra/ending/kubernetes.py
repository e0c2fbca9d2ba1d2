"""What ends on a cluster before a stack's objects go: its controllers and its sandboxes, pods included."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

import pulumi

from controller.backends.labels import LABEL_APP
from controller.backends.pull_errors import is_permanent_pull_error
from infra.cluster.client import ClusterClient, ClusterError, Object
from infra.components.kubernetes.pod_defaults import CONTROLLER, DATABASE, Place
from infra.ending.hooks import Ending, known, last_said, typed_here
from infra.errors import EndRefused
from infra.waiting.workload_verdict import NO_PULL, PULLS

NAMESPACES = "/api/v1/namespaces"
PODS = f"{NAMESPACES}/{{}}/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"
STATEFUL_SETS = "/apis/apps/v1/namespaces/{}/statefulsets"
STOPPER = "ci-fixer-sandbox-destroy"  # the manager of the fields that are changed here
SANDBOXES = {"app": LABEL_APP}
MARGIN_SECONDS = 60.0  # beyond the drain's own limit: for its pod's start
START_SECONDS = 240.0  # in which its pod must have started: a node may have to pull the image
TELL_SECONDS = 10.0  # after which it is said why it has not
STOP_SECONDS = 90.0  # for controllers, and for pods that are terminating
STUCK_SECONDS = 15.0  # after which what is being deleted is looked at
POLL_SECONDS = 0.5
TRIES = 4  # network policies and names may take a moment to reach a new pod
OVER = ("Succeeded", "Failed")  # phases of a pod none of whose containers will run again
DRAINED = "drain: nothing is left"


@dataclass(frozen=True)
class Where:
    """The context and the namespaces of a stack."""

    place: Place
    context: str
    namespace: str
    sandbox_namespace: str

    @property
    def inside(self) -> str:
        """What runs a command in a controller's container."""
        return f"kubectl --context {quote(self.context)} -n {self.namespace} exec deployment/{self.place.name} --"


class _NotStarted(Exception):
    """The pod that drains does not start; the message says why."""


class KubernetesEnd:
    """Ends what the controllers run."""

    def __init__(self, where: Where, ending: Ending) -> None:
        self._where, self._ending = where, ending
        self._done = False

    async def drain(self, pod: pulumi.Output[Any]) -> None:
        """Stops the controllers, so that nothing is claimed any more, ends every sandbox, and sees their pods go.

        `pod` is the spec of one that drains. Raises EndRefused, also where that is not known any more; then as many
        controllers as before run again.
        """
        spec = await known(pod)
        if spec is None and self._ending.seconds > 0:
            raise self._ending.forgotten()
        await asyncio.to_thread(self._drain, spec)
        self._done = True

    async def drain_alone(self, pod: pulumi.Output[Any]) -> None:
        """The same once the Deployment is deleted: one that is there was left by an `up` that was killed, or made again
        since. After a drain only what such a one started is left to end."""
        await asyncio.to_thread(self._delete_controllers)
        await asyncio.to_thread(self._drain, None if self._done else await known(pod))

    async def free_volume(self, claim: pulumi.ResourceHookArgs) -> None:
        """Stops the database on a claim that is about to go: its pod would hold it. Raises EndRefused."""
        metadata = await _metadata(claim)
        await asyncio.to_thread(self._free, metadata["name"], metadata["namespace"])

    async def empty(self, policy: pulumi.ResourceHookArgs) -> None:
        """Ends what still runs in the namespace of a policy that is about to go. Raises EndRefused."""
        await asyncio.to_thread(self._empty, (await _metadata(policy))["namespace"])

    def _free(self, name: str, namespace: str) -> None:
        """The claim is called as the StatefulSet is. It stays, with no replica: who made it makes it whole again."""
        try:
            objects = _Objects(self._where)
            objects.stop(STATEFUL_SETS, name, namespace)
            left = objects.wait_for_pods(namespace, self._where.place.selector(DATABASE))
        except ClusterError as error:
            raise EndRefused(f"the database of claim {name} in namespace {namespace} does not stop: {error}") from error
        if left:
            raise EndRefused(f"pod {left[0]} in namespace {namespace} still uses the claim {name}: delete the pod")

    def _empty(self, namespace: str) -> None:
        try:
            objects = _Objects(self._where)
            if objects.controllers_use(namespace):
                again = f"pulumi up --stack {self._ending.stack}"
                raise EndRefused(
                    f"controllers still start sandboxes in namespace {namespace}: {again} (without --target)"
                )
            objects.delete_sandboxes(namespace)
            left = objects.wait_for_pods(namespace, SANDBOXES)
        except ClusterError as error:
            raise EndRefused(f"sandboxes in namespace {namespace} cannot be ended: {error}") from error
        if left:
            self._are_left(namespace, left)

    def _drain(self, spec: Any) -> None:
        """Without a spec (something that it is made of was never made) Jobs are deleted, and their rows stay as they
        are."""
        boxes = self._where.sandbox_namespace
        try:
            objects = _Objects(self._where)
            with objects.without_controllers() as still:
                if still:
                    raise self._ending.refused(f"controllers do not stop: {', '.join(still[:3])}")
                if spec is not None and self._ending.seconds > 0 and objects.is_there():
                    pulumi.log.info(f"ends every sandbox, and waits for it up to {self._ending.seconds} s")
                    self._run(objects, spec)
                objects.delete_sandboxes(boxes)  # a former database's too, of which the drain knows nothing
                if left := objects.wait_for_pods(boxes, SANDBOXES):
                    self._are_left(boxes, left)
        except (_NotStarted, ClusterError) as error:
            raise self._ending.refused(str(error)) from error

    def _are_left(self, namespace: str, pods: Sequence[str]) -> None:
        """Where nobody is to wait, pods of a node that is gone must not keep the stack for ever."""
        words = f"pods of sandboxes are still there: {', '.join(pods[:3])}"
        if self._ending.seconds > 0:
            raise self._ending.refused(words)
        pulumi.log.warn(f"{words}; on a node that is gone: kubectl delete pod --force -n {namespace}")

    def _run(self, objects: _Objects, spec: Any) -> None:
        give_up, said = time.monotonic() + self._ending.seconds + MARGIN_SECONDS, list[str]()
        for _ in range(TRIES):
            said = []
            for written in objects.run(spec, self._ending.seconds + MARGIN_SECONDS):
                line = typed_here(written, self._where.inside)
                said.append(line)
                if line.startswith("drain: "):
                    pulumi.log.info(line)
            if said[-1:] == [DRAINED]:
                return
            if any(" left " in line or " still " in line for line in said) or time.monotonic() > give_up:
                break
            time.sleep(POLL_SECONDS)
        raise self._ending.refused(last_said(said) or "its pod said nothing")

    def _delete_controllers(self) -> None:
        try:
            _Objects(self._where).delete_controllers()
        except ClusterError as error:
            name, namespace = self._where.place.name, self._where.namespace
            raise EndRefused(f"Deployment {name} in namespace {namespace} cannot be deleted: {error}") from error


class _Objects:
    """The stack's objects, as the API server has them."""

    def __init__(self, where: Where) -> None:
        self._cluster, self._name = ClusterClient(where.context), where.place.name
        self._labels, self._selector = where.place.labels(CONTROLLER), where.place.selector(CONTROLLER)
        self._namespace = where.namespace
        self._deployment = f"{DEPLOYMENTS.format(where.namespace)}/{self._name}"
        self._drainer = f"{PODS.format(where.namespace)}/{self._name}-drain"

    @contextlib.contextmanager
    def without_controllers(self) -> Iterator[list[str]]:
        """No controller runs inside the block, but for those that do not stop; after one that failed as many as before
        run again."""
        self._cluster.delete(self._drainer, gracePeriodSeconds=0)  # of a destroy that was killed
        found = self._cluster.get(self._deployment)
        self.stop(DEPLOYMENTS, self._name, self._namespace)
        try:
            yield self.wait_for_pods(self._namespace, self._selector)
        except BaseException:
            if found is not None:
                self._start_again(max(1, found["spec"]["replicas"]))  # none: a destroy before this one was killed
            raise

    def is_there(self) -> bool:
        """Whether the app's namespace is, and with it what a drain needs."""
        found = self._cluster.get(f"{NAMESPACES}/{self._namespace}")
        return found is not None and "deletionTimestamp" not in found["metadata"]

    def run(self, spec: Any, silent_seconds: float) -> Iterator[str]:
        """What a pod of this spec says until it ends. Raises _NotStarted, and ClusterError if it says nothing for so
        long."""
        name = f"{self._name}-drain"
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": self._labels}, "spec": spec}
        self._cluster.delete(self._drainer, gracePeriodSeconds=0)
        try:
            self._cluster.create(PODS.format(self._namespace), body)
            self._wait_for_start(name)
            yield from self._cluster.follow(f"{self._drainer}/log", silent_seconds)
        finally:
            self._cluster.delete(self._drainer, gracePeriodSeconds=0)

    def wait_for_pods(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        """Waits until no such pod runs, terminating ones included; the names of those that stay."""
        for _ in _looks("pods to end"):
            listed = self._cluster.items(PODS.format(namespace), labels)
            left = [str(pod["metadata"]["name"]) for pod in listed if pod["status"].get("phase") not in OVER]
            if not left:
                break
        return left

    def delete_sandboxes(self, namespace: str) -> None:
        """Every Job of sandboxes, with its pods: one that was made just now may get its pod yet."""
        for _ in _looks("the sandboxes' Jobs to go"):
            self._cluster.delete(JOBS.format(namespace), SANDBOXES, "Foreground")
            if not self._cluster.items(JOBS.format(namespace), SANDBOXES):
                break

    def controllers_use(self, namespace: str) -> bool:
        """Whether there are controllers that start sandboxes there."""
        found = self._cluster.get(self._deployment)
        if found is None or not found["spec"].get("replicas"):
            return False
        settings = found["spec"]["template"]["spec"]["containers"][0].get("env", ())
        return {"name": "SANDBOX_NAMESPACE", "value": namespace} in settings

    def delete_controllers(self) -> None:
        """Their Deployment, as far as it is there."""
        self._cluster.delete(self._deployment)

    def stop(self, kind: str, name: str, namespace: str) -> None:
        """Lets a Deployment or StatefulSet have no pod, as far as it is there."""
        self._scale(f"{kind.format(namespace)}/{name}", 0)

    def _scale(self, path: str, replicas: int) -> None:
        try:
            self._cluster.merge(path, {"spec": {"replicas": replicas}}, STOPPER)
        except ClusterError as error:
            if error.status != 404:
                raise

    def _start_again(self, replicas: int) -> None:
        """Also on an API server that is away for a moment."""
        for _ in _looks(f"the cluster, to have {replicas} controllers again"):
            try:
                self._scale(self._deployment, replicas)
            except ClusterError:
                continue
            return
        scale = f"kubectl -n {self._namespace} scale deployment {self._name} --replicas {replicas}"
        pulumi.log.warn(f"no controller runs any more; once the cluster answers: {scale}")

    def _wait_for_start(self, name: str) -> None:
        began, told = time.monotonic(), ""
        while (pod := self._cluster.get(f"{self._drainer}/status")) is not None and pod["status"]["phase"] == "Pending":
            why, seconds = _waiting(pod["status"]), time.monotonic() - began
            if _is_hopeless(pod["status"]) or seconds > START_SECONDS:
                raise _NotStarted(f"the pod {name} does not start: {why}")
            if seconds > TELL_SECONDS and why != told:
                pulumi.log.info(f"waiting for the pod {name} ({seconds:.0f} s): {why}")
                told = why
            time.sleep(POLL_SECONDS)


async def _metadata(args: pulumi.ResourceHookArgs) -> Mapping[str, Any]:
    """Of an object as it is, not as the program has it now."""
    found: Mapping[str, Any] = await pulumi.Output.from_input((args.old_inputs or {})["metadata"]).future() or {}
    return found


class Deletions:
    """The deletions of namespaces, which tell what keeps them."""

    def __init__(self, context: str) -> None:
        self._context = context
        self.watching: list[asyncio.Task[None]] = []

    async def watch(self, namespace: pulumi.ResourceHookArgs) -> None:
        """Begins, and goes on beside the deletion."""
        name = (await _metadata(namespace))["name"]
        self.watching.append(asyncio.create_task(_watch(self._context, name)))


async def _watch(context: str, namespace: str) -> None:
    cluster, told = ClusterClient(context), ""
    while True:
        await asyncio.sleep(STUCK_SECONDS)
        try:
            found = await asyncio.to_thread(cluster.get, f"{NAMESPACES}/{namespace}")
        except ClusterError:  # the provider says what the API server says
            continue
        if found is None:
            return
        if "deletionTimestamp" in found["metadata"] and (words := stuck(found)) != told:
            pulumi.log.warn(words)
            told = words


def _looks(what: str) -> Iterator[None]:
    """One look after another, for STOP_SECONDS; what is waited for is told again and again."""
    began = told = time.monotonic()
    while True:
        yield
        if (now := time.monotonic()) - began > STOP_SECONDS:
            return
        if now - told > TELL_SECONDS:
            pulumi.log.info(f"waiting for {what} ({now - began:.0f} s)")
            told = now
        time.sleep(POLL_SECONDS)


def stuck(namespace: Object) -> str:
    """What keeps a namespace that is being deleted, in its own words."""
    metadata = namespace["metadata"]
    why = [
        " ".join(one["message"].split())
        for one in namespace["status"].get("conditions", ())
        if one["status"] == "True" and one["type"].startswith("Namespace")
    ]
    if finalizers := metadata.get("finalizers"):
        why.append(f"the namespace itself has the finalizers {', '.join(finalizers)}")
    return (
        f"namespace {metadata['name']} is still being deleted: {'; '.join(why) or 'the cluster does not say why'}."
        " Whoever set a finalizer takes it away; where that is gone, take it away yourself: kubectl patch … --type"
        ' merge --patch \'{"metadata": {"finalizers": null}}\''
    )


def _waiting(status: Object) -> str:
    """Why a pod has not started."""
    for one in _waits(status):
        return f"{one.get('reason', '')} {one.get('message', '')}".strip()
    conditions = status.get("conditions", ())
    unmet = [one["message"] for one in conditions if one["status"] == "False" and one.get("message")]
    return "; ".join(unmet) or "the cluster does not say why"


def _is_hopeless(status: Object) -> bool:
    """Whether its image can never be pulled."""
    images = [one["image"] for one in status.get("containerStatuses", ()) if "waiting" in one["state"]]
    return any(
        one.get("reason") in NO_PULL
        or (one.get("reason") in PULLS and is_permanent_pull_error(one.get("message") or "", image))
        for one, image in zip(_waits(status), images, strict=True)
    )


def _waits(status: Object) -> list[Object]:
    """What its containers wait for."""
    states = [one["state"] for one in status.get("containerStatuses", ())]
    return [one["waiting"] for one in states if "waiting" in one]
