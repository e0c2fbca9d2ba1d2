"""Images on a Docker engine: each is pulled once at a time, however many wait for it."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import aiohttp

from controller.backends.docker_engine import WHO, Engine, EngineError
from controller.backends.json_lines import Json, Lines
from controller.errors import NotNow, Refused, SandboxError
from controller.model import Reason

WAIT_SECONDS = 5.0  # of one call for a pull; it goes on without it
SILENCE_SECONDS = 120.0  # of a pull that gives no sign of progress
PULL = aiohttp.ClientTimeout(total=3600, connect=15)
NO_SUCH_IMAGE = re.compile(
    r"not found|manifest unknown|does not exist|denied|unauthorized|no matching manifest|no such image", re.IGNORECASE
)


class Images:
    """Finds images, and pulls those that are missing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls: dict[str, asyncio.Task[None]] = {}

    async def find(self, image: str) -> Json:
        """What the engine knows of an image. Raises Refused where there is none to be had."""
        try:
            return await self._inspect(image)
        except EngineError as error:
            if error.status not in (301, 404) or _is_id(image):  # 301: no name at all, as the pull will say
                raise pull_error(image, error) from error
        await self._pulled(image)
        return await self._inspect(image)

    async def close(self) -> None:
        """Stops waiting for pulls."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    async def _inspect(self, image: str) -> Json:
        found: Json = await self._engine.json("GET", f"images/{quote(image, safe='')}/json")
        return found

    async def _pulled(self, image: str) -> None:
        pull = self._pulls.get(image)
        if pull is None:
            pull = self._pulls[image] = asyncio.create_task(self._pull(image))
            pull.add_done_callback(lambda _: self._pulls.pop(image))
        done, _ = await asyncio.wait({pull}, timeout=WAIT_SECONDS)
        if not done:
            raise NotNow(f"the image {image} is being pulled")
        await pull

    async def _pull(self, image: str) -> None:
        params = {"fromImage": image}
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            params["tag"] = "latest"  # without one, every tag would be pulled
        try:
            async with self._engine.request("POST", "images/create", params=params, timeout=PULL) as response:
                lines = Lines(response, WHO)
                while (said := await lines.read(SILENCE_SECONDS)) is not None:
                    _check(image, said)
        except EngineError as error:
            raise pull_error(image, error) from error


def _check(image: str, said: list[Json]) -> None:
    if not said:
        raise NotNow(f"the pull of {image} gives no sign of progress")
    for each in said:
        if "error" in each:
            raise EngineError(500, str(each["error"]))


def pull_error(image: str, error: EngineError) -> SandboxError:
    """What a failed pull means: refused for good, or worth another try."""
    if error.status == 400:
        return Refused(Reason.INVALID_REQUEST, f"image {image!r}: {error.words}")
    if error.status in (401, 403, 404) or NO_SUCH_IMAGE.search(error.words):
        return Refused(Reason.IMAGE_PULL_FAILED, f"image {image!r}: {error.words}")
    return NotNow(f"the image {image} cannot be had now: {error.words}")


def _is_id(image: str) -> bool:
    """No registry knows images by their id."""
    return re.fullmatch(r"(sha256:)?[0-9a-f]{64}", image) is not None
