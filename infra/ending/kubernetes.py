"""The end of a stack on a cluster: what is stopped, drained and deleted, in which order, and what refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pulumi

from infra.cluster.client import ClusterError
from infra.cluster.naming import DATABASE
from infra.ending.drain import DRAINED, REPORT, Ending, Patience, final_words, runnable_here
from infra.ending.kubernetes_objects import SANDBOXES, STATEFUL_SETS, Location, PodNotStartedError, StackObjects
from infra.errors import EndRefusedError
from infra.hooks import former_metadata, value_if_known

TRIES = 4  # network policies and names may take a moment to reach a new pod
RETRY_SECONDS = 0.5


class KubernetesEnd:
    """Ends the sandboxes of a stack's controllers; hooks call its methods."""

    def __init__(self, at: Location, ending: Ending, patience: Patience | None = None) -> None:
        self._at, self._ending = at, ending
        self._patience = patience or Patience()
        self._done = False

    async def drain(self, pod: pulumi.Output[Any]) -> None:
        """Stops the controllers, so that nothing is claimed any more, ends every sandbox, and waits for their pods.

        `pod` is the spec of a pod that drains. Raises EndRefusedError, also if that is not known any more; then as many
        controllers as before run again.
        """
        spec = await value_if_known(pod)
        if spec is None and self._ending.seconds > 0:
            raise self._ending.forgotten()
        await asyncio.to_thread(self._drain, spec)
        self._done = True

    async def drain_alone(self, pod: pulumi.Output[Any]) -> None:
        """Drains after the Deployment is deleted.

        A Deployment that is there was left by a killed `up`, or created again since. If a drain came to its end
        before, only what such a Deployment started is left to end.
        """
        await asyncio.to_thread(self._delete_controllers)
        await asyncio.to_thread(self._drain, None if self._done else await value_if_known(pod))

    async def free_volume(self, claim: pulumi.ResourceHookArgs) -> None:
        """Stops the database on a claim that is about to go: its pod would hold it. Raises EndRefusedError."""
        metadata = await former_metadata(claim)
        await asyncio.to_thread(self._free, metadata["name"], metadata["namespace"])

    async def empty(self, policy: pulumi.ResourceHookArgs) -> None:
        """Ends what still runs in the namespace of a policy that is about to go. Raises EndRefusedError."""
        await asyncio.to_thread(self._empty, (await former_metadata(policy))["namespace"])

    def _objects(self) -> StackObjects:
        """A client of its own for each step, with the login of today. Raises ClusterError."""
        return StackObjects(self._at, self._patience)

    def _free(self, name: str, namespace: str) -> None:
        """Scales the StatefulSet of the claim's name to 0. The `up` that created it scales it up again."""
        try:
            objects = self._objects()
            objects.stop(STATEFUL_SETS, name, namespace)
            left = objects.wait_for_pods(namespace, self._at.naming.selector(DATABASE))
        except ClusterError as error:
            raise EndRefusedError(
                f"the database of claim {name} in namespace {namespace} does not stop: {error}"
            ) from error
        if left:
            raise EndRefusedError(f"pod {left[0]} in namespace {namespace} still uses the claim {name}: delete the pod")

    def _empty(self, namespace: str) -> None:
        try:
            objects = self._objects()
            if objects.controllers_use(namespace):
                again = f"pulumi up --stack {self._ending.stack}"
                raise EndRefusedError(
                    f"controllers still start sandboxes in namespace {namespace}: {again} (without --target)"
                )
            objects.delete_sandboxes(namespace)
            left = objects.wait_for_pods(namespace, SANDBOXES)
        except ClusterError as error:
            raise EndRefusedError(f"sandboxes in namespace {namespace} cannot be ended: {error}") from error
        if left:
            self._refuse_leftovers(namespace, left)

    def _drain(self, spec: Any) -> None:
        """Without a spec (something that it is made of was never created) Jobs are deleted, and rows stay as they
        are."""
        sandboxes = self._at.sandbox_namespace
        try:
            objects = self._objects()
            with objects.without_controllers() as still:
                if still:
                    raise self._ending.refused(f"controllers do not stop: {', '.join(still[:3])}")
                if spec is not None and self._ending.seconds > 0 and objects.can_drain():
                    pulumi.log.info(self._ending.announcement)
                    self._run(objects, spec)
                objects.delete_sandboxes(sandboxes)  # a former database's too, of which the drain knows nothing
                if left := objects.wait_for_pods(sandboxes, SANDBOXES):
                    self._refuse_leftovers(sandboxes, left)
        except (PodNotStartedError, ClusterError) as error:
            raise self._ending.refused(str(error)) from error

    def _refuse_leftovers(self, namespace: str, pods: Sequence[str]) -> None:
        """Only warns if no drain is wanted: pods of a node that is gone must not keep the stack for ever."""
        words = f"pods of sandboxes are still there: {', '.join(pods[:3])}"
        if self._ending.seconds > 0:
            raise self._ending.refused(words)
        pulumi.log.warn(f"{words}; on a node that is gone: kubectl delete pod --force -n {namespace}")

    def _run(self, objects: StackObjects, spec: Any) -> None:
        longest = self._ending.seconds + self._patience.margin
        give_up, said = time.monotonic() + longest, list[str]()
        for _ in range(TRIES):
            said = []
            for written in objects.run(spec, longest):
                line = runnable_here(written, self._at.inside)
                said.append(line)
                if line.startswith(REPORT):
                    pulumi.log.info(line)
            if said[-1:] == [DRAINED]:
                return
            if any(" left " in line or " still " in line for line in said) or time.monotonic() > give_up:
                break
            time.sleep(RETRY_SECONDS)
        raise self._ending.refused(final_words(said) or "its pod logged nothing")

    def _delete_controllers(self) -> None:
        try:
            self._objects().delete_controllers()
        except ClusterError as error:
            name, namespace = self._at.naming.name, self._at.namespace
            raise EndRefusedError(f"Deployment {name} in namespace {namespace} cannot be deleted: {error}") from error
