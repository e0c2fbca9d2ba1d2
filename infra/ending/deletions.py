"""The deletion of namespaces, with reports of what keeps one."""

from __future__ import annotations

import asyncio

import pulumi

from infra.cluster.client import ClusterClient, ClusterError, Object
from infra.hooks import former_metadata

STUCK_SECONDS = 15.0  # between two looks at a namespace that is being deleted


class Deletions:
    """Watches namespaces while they are deleted, and warns of what keeps them; a look every `seconds`."""

    def __init__(self, context: str, seconds: float = STUCK_SECONDS) -> None:
        self._context, self._seconds = context, seconds
        self.watching: list[asyncio.Task[None]] = []

    async def watch(self, namespace: pulumi.ResourceHookArgs) -> None:
        """Starts to watch a namespace; the watch goes on beside the deletion, and ends with it."""
        name = (await former_metadata(namespace))["name"]
        self.watching.append(asyncio.create_task(self._watch(name)))

    async def _watch(self, name: str) -> None:
        cluster, reported = ClusterClient(self._context), ""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                found = await asyncio.to_thread(cluster.get, f"/api/v1/namespaces/{name}")
            except ClusterError:  # the provider reports what the API server answers
                continue
            if found is None:
                return
            if "deletionTimestamp" in found["metadata"] and (words := _what_keeps(found)) != reported:
                pulumi.log.warn(words)
                reported = words


def _what_keeps(namespace: Object) -> str:
    """What keeps a namespace that is being deleted, in the cluster's words, and what to do."""
    metadata = namespace["metadata"]
    why = [
        " ".join(condition["message"].split())
        for condition in namespace["status"].get("conditions", ())
        if condition["status"] == "True" and condition["type"].startswith("Namespace")
    ]
    if finalizers := metadata.get("finalizers"):
        why.append(f"the namespace itself has the finalizers {', '.join(finalizers)}")
    return (
        f"namespace {metadata['name']} is still being deleted: {'; '.join(why) or 'the cluster does not say why'}."
        " A finalizer is removed by the program that set it; if that is gone, remove it yourself: kubectl patch …"
        ' --type merge --patch \'{"metadata": {"finalizers": null}}\''
    )
