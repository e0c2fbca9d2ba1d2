"""A controller as `python -m controller run` has it, that may kill itself at a named point of the protocol.

    python -m tests.support.crashing BACKEND PLACE [POINT]

BACKEND is process, docker, kubernetes or memory; PLACE is the directory, socket or kubeconfig of the engine; POINT is
`before:STEP` or `after:STEP`, STEP a call on the queue or the backend: at its first such call it kills itself with -9.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from controller import app, logs
from controller.backends.base import Backend
from controller.backends.docker import backend as docker
from controller.backends.docker import container
from controller.backends.kubernetes.backend import KubernetesBackend
from controller.backends.process.backend import ProcessBackend
from controller.db.store import Store
from controller.reconcile.controller import Pace
from controller.settings import Settings
from tests.support.cluster import IMAGE
from tests.support.engines import SHELL_IMAGE
from tests.support.remote_engine import RemoteBackend

QUEUE_STEPS = ("claim", "bind", "start", "record", "again", "clean")
BACKEND_STEPS = ("create", "release", "output", "delete", "kill")


def die() -> None:
    """What no handler sees."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(target: Any, step: str, point: str) -> None:
    """Makes `target.step` die before its call or after it."""
    real: Callable[..., Awaitable[Any]] = getattr(target, step)

    async def dying(*words: object, **named: object) -> Any:
        if point == f"before:{step}":
            die()
        answer = await real(*words, **named)
        if point == f"after:{step}" and answer not in (False, []):
            die()
        return answer

    setattr(target, step, dying)


def make_backend(kind: str, place: Path) -> Backend:
    """The backend of that kind, on what the test prepared."""
    match kind:
        case "process":
            return ProcessBackend(place)
        case "docker":
            return docker.DockerBackend(SHELL_IMAGE, list_seconds=0.5)
        case "kubernetes":
            return KubernetesBackend(os.environ["SANDBOX_NAMESPACE"], IMAGE, list_seconds=1.0, kubeconfig=str(place))
        case "memory":
            return RemoteBackend(place)
    raise ValueError(kind)


def with_marker_directory(place: Path) -> Any:
    """Docker's containers get the test's directory at /marks: the one thing that is not as in production."""
    real = container.create_body

    def body(*words: Any, **named: Any) -> Any:
        made = real(*words, **named)
        made["HostConfig"]["Binds"] = [f"{place}:/marks"]
        return made

    return patch.object(docker, "create_body", body)


async def main(kind: str, place: Path, point: str) -> None:
    """Runs the controller."""
    settings = Settings.read()
    logs.set_up("console")
    backend = make_backend(kind, place)
    step = point.partition(":")[2]
    if step in BACKEND_STEPS:
        crash_at(backend, step, point)
    make = Store.__init__

    def made(self: Store, *words: Any, **named: Any) -> None:
        make(self, *words, **named)
        if step in QUEUE_STEPS:
            crash_at(self, step, point)

    hurried = partial(Pace, compare=0.5, grace=3.0, abandon=3.0, patience=3.0)  # a test has no ten seconds to wait
    with patch.object(Store, "__init__", made), patch.object(app, "Pace", hurried), with_marker_directory(place):
        await app.serve(settings, backend)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
