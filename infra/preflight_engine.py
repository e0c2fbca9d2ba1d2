"""Whether the Docker engine answers, and has what a stack on it needs: the socket and the ports."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from controller.backends.docker_engine import Engine, EngineError
from controller.errors import NotNow
from infra.config import Config
from infra.docker_containers import LOOPBACK
from infra.errors import PreflightError

ENGINE = "unix:///var/run/docker.sock"
SECONDS = 10  # for all answers


@dataclass(frozen=True)
class FoundEngine:
    """An engine that answers. `faults` stop an `up`; `empty`: no container of the stack is there."""

    faults: tuple[str, ...] = ()
    empty: bool = True


def find_engine(config: Config) -> FoundEngine:
    """Asks the engine, and looks at this machine if the stack runs on it. Raises PreflightError without an answer."""
    containers = [f"{config.name}-{one}" for one in ("database", "app")] if config.target == "docker" else []
    host = os.environ.get("DOCKER_HOST", ENGINE)  # the provider's choice too; it knows no contexts
    with ThreadPoolExecutor(1) as thread:  # Pulumi runs the program inside an event loop
        ports = thread.submit(asyncio.run, _ports_of(host, containers)).result()
    if config.target != "docker":
        return FoundEngine()
    if host.startswith("unix://"):
        faults = [*_taken_ports(config, ports or set()), *_missing_socket(config)]
    else:
        faults = _missing_group(config, host)
    return FoundEngine(tuple(faults), empty=ports is None)


async def _ports_of(host: str, containers: Sequence[str]) -> set[int] | None:
    """The machine's ports that these containers have on the engine at this host; None: none of them is there."""
    engine = Engine(host)
    try:
        async with asyncio.timeout(SECONDS):
            await engine.json("GET", "version")
            found = [await _published(engine, container) for container in containers]
            there = [ports for ports in found if ports is not None]
            return {port for ports in there for port in ports} if there else None
    except TimeoutError as error:
        words = f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        raise PreflightError(words) from error
    except NotNow as error:
        raise PreflightError(f"images are built and run by a Docker engine: {error}") from error
    finally:
        await engine.close()


async def _published(engine: Engine, container: str) -> list[int] | None:
    """The ports of one container, None where it is not there."""
    try:
        found = await engine.json("GET", f"containers/{container}/json")
    except EngineError as error:
        if error.status == 404:
            return None
        raise
    bindings = found["HostConfig"]["PortBindings"] or {}
    return [int(one["HostPort"]) for bound in bindings.values() for one in bound or []]


def _taken_ports(config: Config, ours: set[int]) -> list[str]:
    """A port that another program has would stop the stack when half of it is made."""
    free = f"pulumi config set --stack {config.stack}"
    return [
        f"port {port} of {LOOPBACK} is taken by another program: end it, or {free} {key} PORT"
        for key, port in (("databasePort", config.database_port), ("httpPort", config.http_port))
        if port not in ours and _taken(port)
    ]


def _taken(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:  # another one: the engine may have rights that we have not
            return error.errno == errno.EADDRINUSE
    return False


def _missing_socket(config: Config) -> list[str]:
    """An engine would make a directory of a socket that is not there, and mount that."""
    path = config.docker_socket
    if path is None or sys.platform != "linux" or Path(path).is_socket():
        return []
    return [
        f"there is no socket {path}: {config.project}:dockerSocket takes the engine's socket, or nothing for no socket"
    ]


def _missing_group(config: Config, host: str) -> list[str]:
    if config.docker_socket is None or config.docker_socket_group is not None:
        return []
    words = f"is missing: the group of {config.docker_socket} there, as a number, which nobody can see from here"
    return [f"the Docker engine is at {host}, and {config.project}:dockerSocketGroup {words}"]
