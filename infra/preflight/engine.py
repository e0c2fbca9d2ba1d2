"""Whether the Docker engine answers, and has what a stack on it needs: the socket and the ports."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from controller.backends.docker.api import Engine
from controller.backends.docker.login import config_file
from controller.backends.http_json import ResponseError
from controller.errors import EngineError
from infra.config import Config
from infra.engine import LOOPBACK, connected_engine, engine_host
from infra.errors import PreflightError

T = TypeVar("T")

SECONDS = 10  # for all answers


@dataclass(frozen=True)
class FoundEngine:
    """An engine that answers. `faults` stop an `up`; `taken`: that something with the stack's names is there.
    `warnings` are said. `platform`: what its containers are built for.
    """

    faults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    platform: str = "linux/amd64"


@dataclass(frozen=True)
class Made:
    """What the engine has of a stack: its containers, as it shows them, by name; whether it has the volume.
    `architecture` is the engine's machine's."""

    architecture: str
    containers: Mapping[str, Any]
    volume: bool


def find_engine(config: Config) -> FoundEngine:
    """Asks the engine, and looks at this machine if the stack runs on it. Raises PreflightError without an answer."""
    if context := os.environ.get("DOCKER_CONTEXT"):
        words = "would send the provider's containers there, and its images to DOCKER_HOST"
        raise PreflightError(
            f"DOCKER_CONTEXT is {context!r}, which {words}: unset it, and name the engine by DOCKER_HOST"
        )
    made = _answer(partial(_made, config))
    if engine_host().startswith("unix://"):
        faults = [*_taken_ports(config, _ports(made)), *_missing_socket(config)]
    else:
        faults = _missing_group(config, engine_host())
    faults += login_faults(config)
    return FoundEngine(tuple(faults), _taken_names(config, made), _stopped(config, made), f"linux/{made.architecture}")


def login_faults(config: Config) -> list[str]:
    """The provider asks every credential helper for its logins before it builds, and fails where one is not there."""
    try:
        found = json.loads(config_file().read_bytes()) if config.builds else {}
        named = {found.get("credsStore"), *(found.get("credHelpers") or {}).values()}
    except (OSError, ValueError, AttributeError):
        return []  # no logins; a file that cannot be read is the provider's to name
    missing = sorted(one for one in named if isinstance(one, str) and shutil.which(f"docker-credential-{one}") is None)
    return [
        f"{config_file()} names the credential helper {one}, and there is no program docker-credential-{one}: install"
        " it, or take it out of the file"
        for one in missing
    ]


def ping_engine() -> None:
    """Asks whether it answers. Raises PreflightError where it does not."""
    _answer(_version)


def _answer(ask: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
    """The engine's. Pulumi runs the program inside an event loop, so that another thread has to wait."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _asked(ask)).result()


async def _asked(ask: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
    try:
        async with asyncio.timeout(SECONDS), connected_engine() as engine:
            return await ask(engine)
    except TimeoutError as error:
        words = f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        raise PreflightError(words) from error
    except EngineError as error:
        gone = "a stack whose engine is gone for good is forgotten by `pulumi stack rm --force`"
        raise PreflightError(f"images are built and run by a Docker engine: {error}; {gone}") from error


async def _version(engine: Engine) -> Mapping[str, Any]:
    found: Mapping[str, Any] = await engine.json("GET", "version")
    return found


async def _made(config: Config, engine: Engine) -> Made:
    version = await _version(engine)
    names = [f"{config.name}-{one}" for one in ("database", "app")]
    found = {name: await _there(engine, f"containers/{name}/json") for name in names}
    volume = await _there(engine, f"volumes/{config.name}-database")
    return Made(version["Arch"], {name: one for name, one in found.items() if one is not None}, volume is not None)


async def _there(engine: Engine, path: str) -> Any:
    """What it shows of one object, None where that is not there."""
    try:
        return await engine.json("GET", path)
    except ResponseError as error:
        if error.status == 404:
            return None
        raise


def _taken_names(config: Config, made: Made) -> tuple[str, ...]:
    """Another state's stack of this name would lose what is its own: `destroy` removes by name."""
    volume = [f"{config.name}-database"] if made.volume else []
    held = [*(f"container {one}" for one in made.containers), *(f"volume {one}" for one in volume)]
    if not held:
        return ()
    removed = [f"docker rm -fv {' '.join(made.containers)}"] if made.containers else []
    removed += [f"docker volume rm {one}" for one in volume]
    return (
        f"the engine has {', '.join(held)}, and this stack's state does not know it: another state (pulumi whoami -v)"
        f" has a stack {config.stack}, or the state was lost. Bring that state back, or name this stack otherwise"
        f" (pulumi stack init NAME; `pulumi stack rm --force` forgets this one); if nobody needs it, with its rows:"
        f" {' && '.join(removed)}",
    )


def _stopped(config: Config, made: Made) -> tuple[str, ...]:
    """A controller that somebody stopped, or a `destroy` that was interrupted, is no change that a plain `up` sees."""
    app = made.containers.get(f"{config.name}-app")
    if app is None or app["State"]["Running"] or app["State"].get("Restarting"):
        return ()
    again = f"pulumi up --stack {config.stack} --refresh --run-program"
    return (
        f"container {config.name}-app does not run: it was stopped, or a `destroy` was interrupted; to have it run"
        f" again: {again}",
    )


def _ports(made: Made) -> set[int]:
    """Of this machine, that the stack's own containers have."""
    bindings = [one["HostConfig"]["PortBindings"] or {} for one in made.containers.values()]
    return {int(one["HostPort"]) for each in bindings for bound in each.values() for one in bound or []}


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
