"""JSON out of an engine's answers, and out of answers that go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from controller.errors import TransientEngineError

LINE_BYTES = 4 << 20  # one object of a watch, one event
Json = Mapping[str, Any]


class Lines:
    """The JSON objects, one a line, of an answer of `who` that goes on."""

    def __init__(self, response: aiohttp.ClientResponse, who: str) -> None:
        self._content, self._who = response.content, who
        self._rest = b""

    async def read(self, seconds: float) -> list[Any] | None:
        """Those that have come, waiting at most so long for some; None at the end of the answer."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    chunk = await self._content.readany()
                    if not chunk:
                        return None
                    *whole, self._rest = (self._rest + chunk).split(b"\n")
                    if len(self._rest) > LINE_BYTES:
                        raise TransientEngineError(f"{self._who} sends a line without end")
                    said = [decoded(line, self._who) for line in whole if line.strip()]
                    if said:
                        return said
        except TimeoutError:
            return []


def decoded(raw: bytes, who: str) -> Any:
    """An answer of `who` as JSON."""
    try:
        return json.loads(raw)
    except ValueError as error:
        raise TransientEngineError(
            f"the answer of {who} is no JSON: something else listens there, or it broke off"
        ) from error
