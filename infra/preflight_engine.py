"""Whether the Docker engine answers, and has what a stack on it needs: the socket and the ports."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controller.backends.docker_engine import Engine, EngineError
from controller.errors import NotNow
from infra.config import Config
from infra.docker_containers import LOOPBACK
from infra.errors import PreflightError

ENGINE = "unix:///var/run/docker.sock"
SECONDS = 10  # for all answers


def check_engine(config: Config) -> None:
    """Asks the engine, and looks at this machine where the stack runs on it. Raises PreflightError."""
    containers = [f"{config.name}-{one}" for one in ("database", "app")] if config.target == "docker" else []
    host = os.environ.get("DOCKER_HOST", ENGINE)  # the provider's choice too; it knows no contexts
    with ThreadPoolExecutor(1) as thread:  # Pulumi runs the program inside an event loop
        ports = thread.submit(asyncio.run, _ports_of(host, containers)).result()
    if config.target != "docker":
        return
    if not host.startswith("unix://"):
        _group_is_given(config, host)
    else:
        _ports_are_free(config, ports)
        _socket_is_here(config)


async def _ports_of(host: str, containers: Sequence[str]) -> set[int]:
    """The ports of the machine that these containers have, of an engine that answers at this host."""
    engine = Engine(host)
    try:
        async with asyncio.timeout(SECONDS):
            await engine.json("GET", "version")
            return {port for container in containers for port in await _published(engine, container)}
    except TimeoutError as error:
        words = f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        raise PreflightError(words) from error
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


def _ports_are_free(config: Config, ours: set[int]) -> None:
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


def _socket_is_here(config: Config) -> None:
    """An engine would make a directory of a socket that is not there, and mount that."""
    path = config.docker_socket
    if path is not None and sys.platform == "linux" and not Path(path).is_socket():
        words = "takes the engine's socket, or nothing for no socket"
        raise PreflightError(f"there is no socket {path}: {config.project}:dockerSocket {words}")


def _group_is_given(config: Config, host: str) -> None:
    if config.docker_socket is not None and config.docker_socket_group is None:
        words = f"is missing: the group of {config.docker_socket} there, as a number, which nobody can see from here"
        raise PreflightError(f"the Docker engine is at {host}, and {config.project}:dockerSocketGroup {words}")
