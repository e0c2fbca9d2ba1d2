"""Whether the Docker engine answers, and has what a stack on it needs: the socket and the ports."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.backends.docker_engine import Engine, EngineError
from controller.errors import NotNow
from infra.config import Config
from infra.docker_containers import LOOPBACK
from infra.errors import PreflightError

ENGINE = "unix:///var/run/docker.sock"
SECONDS = 10  # for all answers


@dataclass(frozen=True)
class FoundEngine:
    """An engine that answers. `faults` stop an `up`; `taken`: that something with the stack's names is there."""

    faults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


def find_engine(config: Config) -> FoundEngine:
    """Asks the engine, and looks at this machine if the stack runs on it. Raises PreflightError without an answer."""
    host = os.environ.get("DOCKER_HOST", ENGINE)  # the provider's choice too; it knows no contexts
    with ThreadPoolExecutor(1) as thread:  # Pulumi runs the program inside an event loop
        ports, volume = thread.submit(asyncio.run, _asked(host, config)).result()
    if host.startswith("unix://"):
        faults = [*_taken_ports(config, {port for held in ports.values() for port in held}), *_missing_socket(config)]
    else:
        faults = _missing_group(config, host)
    return FoundEngine(tuple(faults), _taken_names(config, list(ports), volume))


def ping_engine() -> None:
    """Asks whether it answers. Raises PreflightError where it does not."""
    host = os.environ.get("DOCKER_HOST", ENGINE)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _asked(host, None)).result()


async def _asked(host: str, config: Config | None) -> tuple[Mapping[str, Sequence[int]], bool]:
    """The stack's containers on that engine, with their ports on the machine, and whether its volume is there."""
    engine = Engine(host)
    try:
        async with asyncio.timeout(SECONDS):
            await engine.json("GET", "version")
            if config is None:
                return {}, False
            names = [f"{config.name}-{one}" for one in ("database", "app")]
            found = {name: await _published(engine, name) for name in names}
            volume = await _there(engine, f"volumes/{config.name}-database")
            return {name: ports for name, ports in found.items() if ports is not None}, volume is not None
    except TimeoutError as error:
        words = f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        raise PreflightError(words) from error
    except NotNow as error:
        raise PreflightError(f"images are built and run by a Docker engine: {error}") from error
    finally:
        await engine.close()


async def _published(engine: Engine, container: str) -> list[int] | None:
    """The ports of one container, None where it is not there."""
    found = await _there(engine, f"containers/{container}/json")
    if found is None:
        return None
    bindings = found["HostConfig"]["PortBindings"] or {}
    return [int(one["HostPort"]) for bound in bindings.values() for one in bound or []]


async def _there(engine: Engine, path: str) -> Any:
    """What it shows of one object, None where that is not there."""
    try:
        return await engine.json("GET", path)
    except EngineError as error:
        if error.status == 404:
            return None
        raise


def _taken_names(config: Config, containers: Sequence[str], volume: bool) -> tuple[str, ...]:
    """Another state's stack of this name would lose what is its own: `destroy` removes by name."""
    if not containers and not volume:
        return ()
    held = [*(f"container {one}" for one in containers), *([f"volume {config.name}-database"] if volume else [])]
    removed = [f"docker rm -fv {' '.join(containers)}"] if containers else []
    removed += [f"docker volume rm {config.name}-database"] if volume else []
    return (
        f"the engine has {', '.join(held)}, and this stack's state does not know it: another state (pulumi whoami -v)"
        f" has a stack {config.stack}, or the state was lost. Bring that state back, or name this stack otherwise"
        f" (pulumi stack init NAME); if nobody needs it, with its rows: {' && '.join(removed)}",
    )


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
