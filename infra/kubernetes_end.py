"""What ends on a cluster before a stack's objects go: its controllers and its sandboxes, pods included."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

import pulumi
import urllib3
from kubernetes import client
from kubernetes import config as kubeconfig

from controller.backends.pull_words import pull_is_hopeless
from controller.model import LABEL_APP
from infra.ending import Ending, known, last_said, typed_here
from infra.errors import EndRefused
from infra.kubernetes_pods import CONTROLLER, DATABASE, Place
from infra.verdict_workload import NO_PULL, PULLS

ANSWER_SECONDS = 10  # for one answer of the API server
MARGIN_SECONDS = 60.0  # beyond the drain's own limit: for its pod's start
START_SECONDS = 240.0  # in which its pod must have started: a node may have to pull the image
TELL_SECONDS = 10.0  # after which it is said why it has not
STOP_SECONDS = 90.0  # for controllers, and for pods that are terminating
STUCK_SECONDS = 15.0  # after which what is being deleted is looked at
POLL_SECONDS = 0.5
TRIES = 4  # network policies and names may take a moment to reach a new pod
OVER = ("Succeeded", "Failed")  # phases of a pod none of whose containers will run again
DRAINED = "drain: nothing is left"
ERRORS = (client.ApiException, urllib3.exceptions.HTTPError, OSError)


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

        `pod` is the spec of one that drains. Raises EndRefused; then as many controllers as before run again.
        """
        await asyncio.to_thread(self._drain, await known(pod))
        self._done = True

    async def drain_alone(self, pod: pulumi.Output[Any]) -> None:
        """The same once the Deployment is deleted: one that is there was left by an `up` that was killed, or made again
        since. After a drain only what such a one started is left to end."""
        await asyncio.to_thread(self._delete, "Deployment", self._where.place.name)
        await asyncio.to_thread(self._drain, None if self._done else await known(pod))

    async def free_volume(self) -> None:
        """Removes a database that an `up` that was killed left: its pod would hold the claim. Raises EndRefused."""
        name = f"{self._where.place.name}-database"
        await asyncio.to_thread(self._delete, "StatefulSet", name)
        if left := await asyncio.to_thread(self._pods, DATABASE):
            raise EndRefused(
                f"pod {left[0]} in namespace {self._where.namespace} still uses the claim {name}: delete the pod"
            )

    async def empty(self, policy: pulumi.ResourceHookArgs) -> None:
        """Ends what still runs in the namespace of a policy that is about to go. Raises EndRefused."""
        metadata: Any = await pulumi.Output.from_input((policy.old_inputs or {})["metadata"]).future()
        await asyncio.to_thread(self._empty, metadata["namespace"])

    def _empty(self, namespace: str) -> None:
        try:
            cluster = _Cluster(self._where)
            cluster.delete_sandboxes(namespace)
            left = cluster.wait_for_pods(namespace, {"app": LABEL_APP})
        except ERRORS as error:
            raise EndRefused(f"sandboxes in namespace {namespace} cannot be ended: {_words(error)}") from error
        if left:
            self._are_left(namespace, left)

    def _drain(self, spec: Any) -> None:
        """Without a spec (something that it is made of was never made, or is not known any more) Jobs are deleted, and
        their rows stay as they are."""
        boxes = self._where.sandbox_namespace
        try:
            cluster = _Cluster(self._where)
            with cluster.without_controllers() as still:
                if still:
                    raise self._ending.refused(f"controllers do not stop: {', '.join(still[:3])}")
                if spec is not None and self._ending.seconds > 0 and cluster.is_there():
                    pulumi.log.info(f"ends every sandbox, and waits for it up to {self._ending.seconds} s")
                    self._run(cluster, spec)
                else:
                    cluster.delete_sandboxes(boxes)
                if left := cluster.wait_for_pods(boxes, {"app": LABEL_APP}):
                    self._are_left(boxes, left)
        except _NotStarted as error:
            raise self._ending.refused(str(error)) from error
        except ERRORS as error:
            raise self._ending.refused(f"the cluster does not do it ({_words(error)})") from error

    def _are_left(self, namespace: str, pods: Sequence[str]) -> None:
        """Where nobody is to wait, pods of a node that is gone must not keep the stack for ever."""
        words = f"pods of sandboxes are still there: {', '.join(pods[:3])}"
        if self._ending.seconds > 0:
            raise self._ending.refused(words)
        pulumi.log.warn(f"{words}; on a node that is gone: kubectl delete pod --force -n {namespace}")

    def _run(self, cluster: _Cluster, spec: Any) -> None:
        give_up, said = time.monotonic() + self._ending.seconds + MARGIN_SECONDS, list[str]()
        for _ in range(TRIES):
            said = []
            for written in cluster.run(spec, self._ending.seconds + MARGIN_SECONDS):
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

    def _delete(self, kind: str, name: str) -> None:
        try:
            _Cluster(self._where).delete(kind, name)
        except ERRORS as error:
            namespace = self._where.namespace
            raise EndRefused(f"{kind} {name} in namespace {namespace} cannot be deleted: {_words(error)}") from error

    def _pods(self, component: str) -> list[str]:
        try:
            return _Cluster(self._where).wait_for_pods(self._where.namespace, self._where.place.selector(component))
        except ERRORS as error:
            namespace = self._where.namespace
            raise EndRefused(f"pods in namespace {namespace} cannot be listed: {_words(error)}") from error


class _Cluster:
    """The stack's objects, as the API server has them."""

    def __init__(self, where: Where) -> None:
        api = client_of(where.context)
        self._core: Any = client.CoreV1Api(api)
        self._apps: Any = client.AppsV1Api(api)
        self._batch: Any = client.BatchV1Api(api)
        self._where, self._app = where, (where.place.name, where.namespace)

    @contextlib.contextmanager
    def without_controllers(self) -> Iterator[list[str]]:
        """No controller runs inside the block, but for those that do not stop; after one that failed as many as before
        run again."""
        before = 0
        with _gone():
            before = self._apps.read_namespaced_deployment(*self._app, _request_timeout=ANSWER_SECONDS).spec.replicas
            self._scale(0)
        try:
            yield self.wait_for_pods(self._where.namespace, self._where.place.selector(CONTROLLER))
        except BaseException:
            with _gone():
                self._scale(before)
            raise

    def is_there(self) -> bool:
        """Whether the app's namespace is, and with it what a drain needs."""
        try:
            found = self._core.read_namespace(self._where.namespace, _request_timeout=ANSWER_SECONDS)
        except client.ApiException as error:
            if error.status == 404:
                return False
            raise
        terminating: bool = found.metadata.deletion_timestamp is not None
        return not terminating

    def run(self, spec: Any, silent_seconds: float) -> Iterator[str]:
        """What a pod of this spec says until it ends. Raises _NotStarted, and one of ERRORS if it says nothing for so
        long."""
        name, namespace = f"{self._where.place.name}-drain", self._where.namespace
        labels = self._where.place.labels(CONTROLLER)
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        self._delete_pod(name)
        try:
            self._core.create_namespaced_pod(namespace, body, _request_timeout=ANSWER_SECONDS)
            self._wait_for_start(name)
            waits = (ANSWER_SECONDS, silent_seconds)
            log = self._core.read_namespaced_pod_log(
                name, namespace, follow=True, _preload_content=False, _request_timeout=waits
            )
            for line in log:
                yield line.decode("utf-8", "replace").strip()
        finally:
            self._delete_pod(name)

    def wait_for_pods(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        """Waits until no such pod runs, terminating ones included; the names of those that stay."""
        selector, give_up = ",".join(f"{key}={value}" for key, value in labels.items()), time.monotonic() + STOP_SECONDS
        while True:
            listed = self._core.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=ANSWER_SECONDS)
            left = [pod.metadata.name for pod in listed.items if pod.status.phase not in OVER]
            if not left or time.monotonic() > give_up:
                return left
            time.sleep(POLL_SECONDS)

    def delete_sandboxes(self, namespace: str) -> None:
        """Every Job of sandboxes, with its pods."""
        with _gone():
            self._batch.delete_collection_namespaced_job(
                namespace,
                label_selector=f"app={LABEL_APP}",
                propagation_policy="Foreground",
                _request_timeout=ANSWER_SECONDS,
            )

    def delete(self, kind: str, name: str) -> None:
        """A Deployment or StatefulSet, as far as it is there."""
        apps = self._apps
        delete = {
            "Deployment": apps.delete_namespaced_deployment,
            "StatefulSet": apps.delete_namespaced_stateful_set,
        }
        with _gone():
            delete[kind](name, self._where.namespace, _request_timeout=ANSWER_SECONDS)

    def _scale(self, replicas: int) -> None:
        body = {"spec": {"replicas": replicas}}
        self._apps.patch_namespaced_deployment_scale(*self._app, body, _request_timeout=ANSWER_SECONDS)

    def _delete_pod(self, name: str) -> None:
        with _gone():
            self._core.delete_namespaced_pod(
                name, self._where.namespace, grace_period_seconds=0, _request_timeout=ANSWER_SECONDS
            )

    def _wait_for_start(self, name: str) -> None:
        began, told = time.monotonic(), ""
        while True:
            status = self._core.read_namespaced_pod_status(
                name, self._where.namespace, _request_timeout=ANSWER_SECONDS
            ).status
            if status.phase != "Pending":
                return
            why, seconds = _waiting(status), time.monotonic() - began
            if _is_hopeless(status) or seconds > START_SECONDS:
                raise _NotStarted(f"the pod {name} does not start: {why}")
            if seconds > TELL_SECONDS and why != told:
                pulumi.log.info(f"waiting for the pod {name} ({seconds:.0f} s): {why}")
                told = why
            time.sleep(POLL_SECONDS)


class Deletion:
    """The deletion of a namespace, which tells what keeps it."""

    def __init__(self, context: str, namespace: str) -> None:
        self._context, self._namespace = context, namespace
        self.watching: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        """Begins, and goes on beside the deletion."""
        self.watching = asyncio.create_task(_watch(self._context, self._namespace))


async def _watch(context: str, namespace: str) -> None:
    core, told = client.CoreV1Api(client_of(context)), ""
    while True:
        await asyncio.sleep(STUCK_SECONDS)
        try:
            found = await asyncio.to_thread(core.read_namespace, namespace, _request_timeout=ANSWER_SECONDS)
        except ERRORS:  # it is gone, or the provider says what the API server says
            return
        if (words := stuck(found)) != told:
            pulumi.log.warn(words)
            told = words


def stuck(namespace: Any) -> str:
    """What keeps a namespace that is being deleted, in its own words."""
    name = namespace.metadata.name
    why = [
        " ".join(one.message.split())
        for one in namespace.status.conditions or ()
        if one.status == "True" and one.type.startswith("Namespace")
    ]
    if namespace.metadata.finalizers:
        why.append(f"the namespace itself has the finalizers {', '.join(namespace.metadata.finalizers)}")
    return (
        f"namespace {name} is still being deleted: {'; '.join(why) or 'the cluster does not say why'}. Whoever set a"
        " finalizer takes it away; where that is gone, take it away yourself: kubectl patch … --type merge"
        ' --patch \'{"metadata": {"finalizers": null}}\''
    )


def client_of(context: str) -> Any:
    """A client of that context's cluster, which asks once."""
    settings = client.Configuration()
    settings.retries = False
    return kubeconfig.new_client_from_config(context=context, client_configuration=settings)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """Leaves the block where an object is not there."""
    try:
        yield
    except client.ApiException as error:
        if error.status != 404:
            raise


def _waiting(status: Any) -> str:
    """Why a pod has not started."""
    for one in status.container_statuses or ():
        if one.state.waiting is not None:
            return f"{one.state.waiting.reason} {one.state.waiting.message or ''}".strip()
    unmet = [one.message for one in status.conditions or () if one.status == "False" and one.message]
    return "; ".join(unmet) or "the cluster does not say why"


def _is_hopeless(status: Any) -> bool:
    """Whether its image can never be pulled."""
    return any(
        waiting.reason in NO_PULL or (waiting.reason in PULLS and pull_is_hopeless(waiting.message or "", one.image))
        for one in status.container_statuses or ()
        if (waiting := one.state.waiting) is not None
    )


def _words(error: Exception) -> str:
    """What the API server says."""
    if isinstance(error, client.ApiException):
        try:
            return str(json.loads(error.body or "{}")["message"])
        except (ValueError, KeyError, TypeError):
            return f"{error.status} {error.reason}"
    return str(error)
