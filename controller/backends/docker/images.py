"""Images on a Docker engine: looked up, and pulled in the background where they are missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from urllib.parse import quote

import aiohttp

from controller.backends.docker.api import WHO, Engine, EngineError
from controller.backends.docker.login import LoginError, registry_auth, registry_of
from controller.backends.docker.pulls import Pulls
from controller.backends.json_lines import Json, Lines
from controller.backends.pull_errors import is_permanent_pull_error
from controller.errors import RequestRejectedError, SandboxError, TransientEngineError
from controller.protocol.model import Launch, Reason

log = logging.getLogger(__name__)

PULL_SECONDS = 3600.0
PULL = aiohttp.ClientTimeout(total=PULL_SECONDS, connect=15)


class Images:
    """Finds images, and pulls those that are missing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls = Pulls(self._pull, registry_of)

    async def find(self, image: str, launch: Launch) -> Json:
        """What the engine knows of an image.

        Raises ImagePullingError if it has yet to be pulled, RequestRejectedError if it cannot be pulled.
        """
        try:
            found: Json = await self._engine.json("GET", f"images/{quote(image, safe='')}/json")
        except EngineError as error:
            if error.status in (301, 404) and not _is_id(image):  # 301: no name at all, as the pull will say
                raise self._pulls.away(image, launch.key, launch.tenant) from error
            raise pull_error(image, error) from error
        return found

    async def close(self) -> None:
        """Ends the pulls."""
        await self._pulls.close()

    async def _pull(self, image: str, heard: Callable[[], None]) -> None:
        params, headers, trouble = {"fromImage": image}, {}, ""
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            params["tag"] = "latest"  # without one, every tag would be pulled
        try:
            auth = await registry_auth(image)
            headers = {"X-Registry-Auth": auth} if auth else {}
        except LoginError as error:
            trouble = f"; pulled without a login: {error}"
            log.warning("the image %s is pulled without a login: %s", image, error)
        try:
            async with self._engine.request(
                "POST", "images/create", params=params, headers=headers, timeout=PULL
            ) as response:
                lines = Lines(response, WHO)
                while (said := await lines.read(PULL_SECONDS)) is not None:
                    heard()
                    _check(said)
        except EngineError as error:
            raise pull_error(image, EngineError(error.status, error.words + trouble)) from error


def _check(said: list[Json]) -> None:
    for each in said:
        if "error" in each:
            raise EngineError(500, str(each["error"]))


def pull_error(image: str, error: EngineError) -> SandboxError:
    """What a failed pull means: refused for good, or worth another try."""
    if error.status == 400:
        return RequestRejectedError(Reason.INVALID_REQUEST, f"image {image!r}: {error.words}")
    if error.status in (401, 403, 404) or is_permanent_pull_error(error.words, image):
        return RequestRejectedError(Reason.IMAGE_PULL_FAILED, f"image {image!r}: {error.words}")
    return TransientEngineError(f"the image {image} cannot be had now: {error.words}")


def _is_id(image: str) -> bool:
    """No registry knows images by their id."""
    return re.fullmatch(r"(sha256:)?[0-9a-f]{64}", image) is not None
