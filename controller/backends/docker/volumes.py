"""The volumes that an image declares: their content stays readable, and nothing unbounded can be written to them."""

from __future__ import annotations

import asyncio
import io
import logging
import posixpath
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from controller.backends.docker.api import SLOW, Engine
from controller.backends.http_json import Json, ResponseError
from controller.backends.labels import docker_filters
from controller.errors import EngineError
from controller.logs import about

log = logging.getLogger(__name__)

PREFIX = "sandbox-volume-"
KERNELS = ("/dev", "/proc", "/sys")  # the engine mounts its own file systems there
LOOKED_AT_BYTES = 1 << 20  # of a directory; beyond that it is assumed to hold files
LOOKED_AT, LOOKS_AT_ONCE = 48, 4  # of an image's volumes; each look takes the engine 10 to 100 ms
IMAGES = 1000  # whose volumes are remembered


def declared(volumes: Iterable[str], ours: Iterable[str]) -> list[str]:
    """The paths of declared volumes, without the paths that are ours."""
    return sorted({posixpath.normpath("/" + volume.lstrip("/")) for volume in volumes} - set(ours))


def kept(found: Mapping[str, bool | None]) -> frozenset[str]:
    """The declared volumes whose content in the image is kept.

    `found`: by path, whether the image has files there; None if it has not even a directory. A volume inside of another
    one that has no directory to be mounted on prevents that the outer one is kept.
    """

    def is_kept(path: str, files: bool | None) -> bool:
        unmountable = any(inner.startswith(path + "/") and there is None for inner, there in found.items())
        return bool(files) and not unmountable and not (path + "/").startswith(tuple(f"{each}/" for each in KERNELS))

    return frozenset(path for path, files in found.items() if is_kept(path, files))


def mount(target: str, own: Mapping[str, str]) -> dict[str, Any]:
    """A volume that the engine fills with the image's content at `target`; only a named one can be read-only."""
    source = f"{PREFIX}{uuid4().hex}"
    return {"Type": "volume", "Target": target, "Source": source, "ReadOnly": True, "VolumeOptions": {"Labels": own}}


def named(mounts: Iterable[Json] | None) -> list[str]:
    """The named volumes among a container's mounts, which the engine does not remove with it."""
    return [name for each in mounts or () if (name := str(each.get("Name") or "")).startswith(PREFIX)]


def has_files(archive: bytes, whole: bool) -> bool | None:
    """Whether the beginning of a directory's tar archive holds non-empty files or links; None: not known yet."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            while (entry := tar.next()) is not None:
                if entry.issym() or entry.islnk() or (entry.isreg() and entry.size > 0):
                    return True
    except tarfile.TarError:
        pass
    return False if whole else None


class Volumes:
    """Looks into images, once each, and removes volumes that outlived their container."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[str, frozenset[str]] = {}
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._idle: set[str] = set()  # without a container at the last sweep

    def known(self, image_id: str, paths: list[str]) -> frozenset[str] | None:
        """The paths among these whose content is kept; None if the image has not been looked into yet."""
        return self._kept.get(image_id) if paths else frozenset()

    async def look(self, image_id: str, container: str, paths: list[str]) -> frozenset[str]:
        """Finds that out, in a container of the image that has not started and has no volume at these paths."""
        looked = paths[:LOOKED_AT]
        files = await asyncio.gather(*(self._has_files(container, path) for path in looked))
        found = dict.fromkeys(paths, False) | dict(zip(looked, files, strict=True))
        if len(self._kept) >= IMAGES:
            self._kept.clear()
        self._kept[image_id] = kept(found)
        return self._kept[image_id]

    async def remove(self, names: Iterable[str]) -> None:
        """Removes volumes, except those that are in use."""
        for name in names:
            try:
                await self._engine.send("DELETE", f"volumes/{name}", timeout=SLOW)
            except ResponseError as error:
                if error.status not in (404, 409):
                    raise

    async def sweep(self, installation: str) -> None:
        """Removes this installation's volumes that two sweeps in a row found without a container: left by a crash, or
        by the removal of a container by hand."""
        wanted = docker_filters(installation, dangling=["true"])
        try:
            said = await self._engine.json("GET", "volumes", params={"filters": wanted})
            found = (each for each in said.get("Volumes") or () if "sandboxId" in (each.get("Labels") or {}))
            idle = {str(each["Name"]) for each in found}  # a controller's mark is not a sandbox's
            await self.remove(idle & self._idle)
        except EngineError as error:
            log.warning("volumes not swept, retrying", extra=about(error=error))
        else:
            self._idle = idle

    async def _has_files(self, container: str, path: str) -> bool | None:
        where, params, archive = f"containers/{container}/archive", {"path": f"{path}/."}, b""  # the dot follows a link
        try:
            async with self._looks, self._engine.request("GET", where, params=params, timeout=SLOW) as response:
                async for chunk in response.content.iter_any():
                    archive += chunk
                    if has_files(archive, whole=False) or len(archive) > LOOKED_AT_BYTES:
                        return True
        except ResponseError as error:
            if error.status in (400, 404):  # no directory
                return None
            raise
        return has_files(archive, whole=True)
