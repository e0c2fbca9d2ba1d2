"""The preflight of a Docker engine: whether it answers, and whether socket, ports and names are free for the stack."""

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
from controller.errors import EngineError
from infra.config import Config
from infra.engine import LOOPBACK, connected_engine, engine_host
from infra.errors import PreflightError

T = TypeVar("T")

SECONDS = 10  # for all answers


@dataclass(frozen=True)
class FoundEngine:
    """An engine that answers. `faults` stop an `up`; `taken`: objects of the stack's names that are there.
    `warnings` are reported. `platform` is that of its containers.
    """

    faults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    platform: str = "linux/amd64"


@dataclass(frozen=True)
class StackOnEngine:
    """The objects of a stack on the engine: its containers by name, as the engine shows them, and whether it has the
    volume. `architecture` is that of the engine's machine."""

    architecture: str
    containers: Mapping[str, Any]
    volume: bool


def find_engine(config: Config) -> FoundEngine:
    """Asks the engine, and checks this machine if the engine is on it. Raises PreflightError without an answer."""
    if context := os.environ.get("DOCKER_CONTEXT"):
        words = "would send the provider's containers there, and its images to DOCKER_HOST"
        raise PreflightError(
            f"DOCKER_CONTEXT is {context!r}, which {words}: unset it, and name the engine by DOCKER_HOST"
        )
    stack = _answer(partial(_stack_on_engine, config))
    if engine_host().startswith("unix://"):
        faults = [*_taken_ports(config, _ports(stack)), *_missing_socket(config)]
    else:
        faults = _missing_group(config, engine_host())
    faults += login_faults(config)
    return FoundEngine(
        tuple(faults), _taken_names(config, stack), _stopped(config, stack), f"linux/{stack.architecture}"
    )


def login_faults(config: Config) -> list[str]:
    """Missing credential helpers: the provider asks each for its logins before it builds, and fails without one."""
    try:
        found = json.loads(config_file().read_bytes()) if config.builds else {}
        named = {found.get("credsStore"), *(found.get("credHelpers") or {}).values()}
    except (OSError, ValueError, AttributeError):
        return []  # no logins; the provider reports a file that it cannot read
    missing = sorted(one for one in named if isinstance(one, str) and shutil.which(f"docker-credential-{one}") is None)
    return [
        f"{config_file()} names the credential helper {one}, and there is no program docker-credential-{one}: install"
        " it, or take it out of the file"
        for one in missing
    ]


def ping_engine() -> None:
    """Raises PreflightError if the engine does not answer."""
    _answer(_version)


def _answer(ask: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
    """The engine's answer, awaited in another thread: Pulumi runs the program inside an event loop."""
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
        gone = "if the engine is gone for good, forget the stack with `pulumi stack rm --force`"
        raise PreflightError(f"the Docker engine that builds the images cannot be used: {error}; {gone}") from error


async def _version(engine: Engine) -> Mapping[str, Any]:
    found: Mapping[str, Any] = await engine.json("GET", "version")
    return found


async def _stack_on_engine(config: Config, engine: Engine) -> StackOnEngine:
    version = await _version(engine)
    names = [f"{config.name}-{one}" for one in ("database", "app")]
    found = {name: await engine.find(f"containers/{name}/json") for name in names}
    volume = await engine.find(f"volumes/{config.name}-database")
    return StackOnEngine(
        version["Arch"], {name: one for name, one in found.items() if one is not None}, volume is not None
    )


def _taken_names(config: Config, stack: StackOnEngine) -> tuple[str, ...]:
    """A fault if another state has a stack of this name: `destroy` removes by name, and would remove its objects."""
    volume = [f"{config.name}-database"] if stack.volume else []
    held = [*(f"container {one}" for one in stack.containers), *(f"volume {one}" for one in volume)]
    if not held:
        return ()
    removed = [f"docker rm -fv {' '.join(stack.containers)}"] if stack.containers else []
    removed += [f"docker volume rm {one}" for one in volume]
    return (
        f"the engine has {', '.join(held)}, and this stack's state does not know it: another state (pulumi whoami -v)"
        f" has a stack {config.stack}, or the state was lost. Bring that state back, or give this stack another name"
        f" (pulumi stack init NAME; `pulumi stack rm --force` forgets this one); if nobody needs it, with its rows:"
        f" {' && '.join(removed)}",
    )


def _stopped(config: Config, stack: StackOnEngine) -> tuple[str, ...]:
    """A warning if the controller is stopped, by hand or by an interrupted `destroy`: a plain `up` does not see it."""
    app = stack.containers.get(f"{config.name}-app")
    if app is None or app["State"]["Running"] or app["State"].get("Restarting"):
        return ()
    again = f"pulumi up --stack {config.stack} --refresh --run-program"
    return (
        f"container {config.name}-app does not run: it was stopped, or a `destroy` was interrupted; to start it"
        f" again: {again}",
    )


def _ports(stack: StackOnEngine) -> set[int]:
    """The ports of this machine that the stack's own containers publish."""
    bindings = [one["HostConfig"]["PortBindings"] or {} for one in stack.containers.values()]
    return {int(one["HostPort"]) for each in bindings for bound in each.values() for one in bound or []}


def _taken_ports(config: Config, ours: set[int]) -> list[str]:
    """Ports that another program uses; such a port would stop the stack when half of it is created."""
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
        except OSError as error:  # another error is none: the engine may have more rights than this program
            return error.errno == errno.EADDRINUSE
    return False


def _missing_socket(config: Config) -> list[str]:
    """A fault if the socket is not there: the engine would create a directory instead, and mount that."""
    path = config.docker_socket
    if path is None or sys.platform != "linux" or Path(path).is_socket():
        return []
    takes = "takes the engine's socket, or an empty value for no socket"
    return [f"there is no socket {path}: {config.project}:dockerSocket {takes}"]


def _missing_group(config: Config, host: str) -> list[str]:
    if config.docker_socket is None or config.docker_socket_group is not None:
        return []
    words = f"is missing: the numeric group of {config.docker_socket} on that machine, which cannot be read from here"
    return [f"the Docker engine is at {host}, and {config.project}:dockerSocketGroup {words}"]
