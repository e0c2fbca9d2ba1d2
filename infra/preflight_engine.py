"""Whether the Docker engine answers, and has what a stack on it needs: the socket and the ports."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controller.backends.docker_engine import Engine, EngineError
from controller.errors import NotNow
from infra.config import Config
from infra.docker_containers import LOOPBACK
from infra.errors import PreflightError

SECONDS = 10  # for all answers


def check_engine(config: Config) -> None:
    """Asks the engine, and looks at this machine where the stack runs on it. Raises PreflightError."""
    with ThreadPoolExecutor(1) as thread:  # Pulumi runs the program inside an event loop
        ours = thread.submit(asyncio.run, _answers(config)).result()
    if config.target != "docker":
        return
    elsewhere = os.environ.get("DOCKER_HOST", "unix://")
    if elsewhere.startswith("unix://"):
        _ports(config, ours)
    if config.docker_socket is not None:
        _socket(config, config.docker_socket, None if elsewhere.startswith("unix://") else elsewhere)


async def _answers(config: Config) -> set[int]:
    """The ports that the stack's own containers have."""
    engine = Engine(None)
    try:
        async with asyncio.timeout(SECONDS):
            await engine.json("GET", "version")
            return {port for one in ("database", "app") for port in await _published(engine, f"{config.name}-{one}")}
    except TimeoutError as error:
        raise PreflightError(
            f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        ) from error
    except NotNow as error:
        raise PreflightError(f"images are built and run by a Docker engine: {error}") from error
    finally:
        await engine.close()


async def _published(engine: Engine, container: str) -> list[int]:
    try:
        found = await engine.json("GET", f"containers/{container}/json")
    except EngineError as error:
        if error.status == 404:
            return []
        raise
    bindings = found["HostConfig"]["PortBindings"] or {}
    return [int(one["HostPort"]) for bound in bindings.values() for one in bound or []]


def _ports(config: Config, ours: set[int]) -> None:
    """A port that another program has would stop the stack when half of it is made."""
    for key, port in (("databasePort", config.database_port), ("httpPort", config.http_port)):
        if port not in ours and _taken(port):
            free = f"pulumi config set --stack {config.stack} {key} PORT"
            raise PreflightError(f"port {port} of {LOOPBACK} is taken by another program: end it, or {free}")


def _taken(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:  # another one: the engine may have rights that we have not
            return error.errno == errno.EADDRINUSE
    return False


def _socket(config: Config, path: str, elsewhere: str | None) -> None:
    """An engine would make a directory of a socket that is not there, and mount that."""
    if elsewhere is not None:
        if config.docker_socket_group is None:
            words = f"is missing: the group of {path} there, as a number, which nobody can see from here"
            raise PreflightError(f"the Docker engine is at {elsewhere}, and {config.project}:dockerSocketGroup {words}")
    elif sys.platform == "linux" and not Path(path).is_socket():
        words = "takes the engine's socket, or nothing for no socket"
        raise PreflightError(f"there is no socket {path}: {config.project}:dockerSocket {words}")
