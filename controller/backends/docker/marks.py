"""The marks of controllers on a Docker engine: empty volumes, each with a controller's name in a label."""

from __future__ import annotations

import re

from controller.backends.docker.api import Engine
from controller.backends.http_json import ResponseError, verb
from controller.backends.labels import docker_filters, installation_labels

LABEL = "controller"


class DockerMarks:
    """The marks of one installation. `root`: the engine's data root, where its identity is kept."""

    def __init__(self, engine: Engine, installation: str, root: str) -> None:
        self._engine, self._installation = engine, installation
        self.advice = (  # an engine that finds the old key makes the same identity of it again
            f"on the copy remove {root}/engine-id and /etc/docker/key.json, as far as they are there, "
            "and restart its Docker engine"
        )

    @verb
    async def names(self) -> set[str]:
        found = await self._engine.json("GET", "volumes", params={"filters": docker_filters(self._installation)})
        labels = [volume.get("Labels") or {} for volume in found.get("Volumes") or []]
        return {each[LABEL] for each in labels if LABEL in each}

    @verb
    async def leave(self, controller: str) -> None:
        labels = installation_labels(self._installation) | {LABEL: controller}
        body = {"Name": self._volume(controller), "Labels": labels}
        await self._engine.json("POST", "volumes/create", body=body)

    @verb
    async def remove(self, controller: str) -> None:
        try:
            await self._engine.send("DELETE", f"volumes/{self._volume(controller)}")
        except ResponseError as error:
            if error.status != 404:
                raise

    def _volume(self, controller: str) -> str:
        return "sandbox-controller-" + re.sub(r"[^A-Za-z0-9_.-]", "-", controller)
