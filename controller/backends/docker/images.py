"""Images on a Docker engine: looked up, and pulled in the background if they are missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from urllib.parse import quote

import aiohttp

from controller.backends.docker.api import WHO, Engine
from controller.backends.docker.errors import pull_error
from controller.backends.docker.login import LoginError, registry_auth, registry_of
from controller.backends.docker.pulls import Pulls
from controller.backends.http_json import Json, ResponseError
from controller.logs import about
from controller.protocol.model import Launch

log = logging.getLogger(__name__)

PULL_SECONDS = 3600.0
PULL = aiohttp.ClientTimeout(total=PULL_SECONDS, connect=15)


class Images:
    """Finds images, and pulls those that are missing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls = Pulls(self._pull, registry_of)

    async def find(self, image: str, launch: Launch) -> Json:
        """Returns the engine's inspection of an image.

        Raises ImagePullingError if it has yet to be pulled, RequestRejectedError if it cannot be pulled.
        """
        try:
            found: Json = await self._engine.json("GET", f"images/{quote(image, safe='')}/json")
        except ResponseError as error:
            if error.status in (301, 404) and not _is_id(image):  # 301: not a valid name, as the pull will report
                raise self._pulls.request(image, launch.key, launch.tenant) from error
            raise pull_error(image, error) from error
        return found

    async def close(self) -> None:
        """Ends the pulls."""
        await self._pulls.close()

    async def _pull(self, image: str, progressed: Callable[[], None]) -> None:
        params, headers, trouble = {"fromImage": image}, {}, ""
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            params["tag"] = "latest"  # without one, every tag would be pulled
        try:
            auth = await registry_auth(image)
            headers = {"X-Registry-Auth": auth} if auth else {}
        except LoginError as error:
            trouble = f"; pulled without a login: {error}"
            log.warning("image pulled without a registry login", extra=about(image=image, error=error))
        try:
            async with self._engine.request(
                "POST", "images/create", params=params, headers=headers, timeout=PULL
            ) as response:
                lines = self._engine.lines(response)
                while (said := await lines.read(PULL_SECONDS)) is not None:
                    progressed()
                    _check(said)
        except ResponseError as error:
            raise pull_error(image, error, trouble) from error


def _check(said: list[Json]) -> None:
    for each in said:
        if "error" in each:
            raise ResponseError(WHO, 500, str(each["error"]))


def _is_id(image: str) -> bool:
    """Whether it is an image id, which no registry can resolve."""
    return re.fullmatch(r"(sha256:)?[0-9a-f]{64}", image) is not None
