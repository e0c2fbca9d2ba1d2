"""The Docker engine that a stack runs on: the one that the provider uses too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controller.backends.docker.api import Engine

LOOPBACK = "127.0.0.1"  # the only address on which a stack publishes ports


def engine_host() -> str:
    """The engine's address: `DOCKER_HOST`, or the usual socket."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


@asynccontextmanager
async def connected_engine() -> AsyncIterator[Engine]:
    """A client of the engine, closed at the end of the block."""
    engine = Engine(engine_host())
    try:
        yield engine
    finally:
        await engine.close()
