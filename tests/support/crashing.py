"""A controller as `python -m controller run` has it, that may kill or stop itself at a named point of the protocol.

A point is `before:STEP` or `after:STEP`, STEP a call on the store or the backend.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

from controller import app, logs
from controller.backends.base import Backend
from controller.backends.docker import container
from controller.backends.docker.backend import DockerBackend
from controller.backends.kubernetes.backend import KubernetesBackend
from controller.backends.process.backend import ProcessBackend
from controller.db.store import Store
from controller.protocol.model import Key
from controller.settings import Settings
from tests.support.cluster import IMAGE
from tests.support.engines import SHELL_IMAGE
from tests.support.remote_engine import RemoteBackend

STORE_STEPS = ("claim", "bind", "mark_running", "record", "requeue", "mark_cleaned")
BACKEND_STEPS = ("create", "release", "output", "delete", "kill")


@dataclass
class Failpoint:
    """Where a process kills or stops itself: at its first call of `point` for one of `sandboxes` (None: for any)."""

    point: str
    sandboxes: Collection[UUID] | None = None
    number: int = signal.SIGKILL
    reached: bool = False

    def __post_init__(self) -> None:
        if self.step not in STORE_STEPS + BACKEND_STEPS:
            raise ValueError(f"{self.point} is no point: the steps are {', '.join(STORE_STEPS + BACKEND_STEPS)}")

    @property
    def step(self) -> str:
        """The call that it is about."""
        return self.point.partition(":")[2]

    def install(self, target: Any) -> None:
        """Replaces the step of the queue or the backend by one that meets this point."""
        real: Callable[..., Awaitable[Any]] = getattr(target, self.step)

        async def step(*words: Any, **named: Any) -> Any:
            if self.point.startswith("before:") and self._concerns(words[0]):
                self._strike()
            answer = await real(*words, **named)
            about = answer if self.step == "claim" else words[0]
            if self.point.startswith("after:") and answer not in (False, []) and self._concerns(about):
                self._strike()
            return answer

        setattr(target, self.step, step)

    def _concerns(self, what: Any) -> bool:
        """Whether the step's first argument, or what a claim returned, is about one of the sandboxes."""
        if self.sandboxes is None or isinstance(what, int):  # the number of rows that a claim asks for
            return True
        if isinstance(what, list):
            return any(claimed.row.id in self.sandboxes for claimed in what)
        key: Key = what if isinstance(what, Key) else what.key
        return key.sandbox_id in self.sandboxes

    def _strike(self) -> None:
        if not self.reached:
            self.reached = True
            os.kill(os.getpid(), self.number)


def make_backend(kind: str, place: Path) -> Backend:
    """The backend of that kind, on what the test prepared."""
    match kind:
        case "process":
            return ProcessBackend(place)
        case "docker":
            return DockerBackend(SHELL_IMAGE, list_seconds=0.5)
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

    return patch.object(container, "create_body", body)


def run(kind: str, place: Path, failpoint: Failpoint | None = None) -> None:
    """Runs the controller on a backend of that kind (process, docker, kubernetes, memory), which is found at `place`: a
    directory, socket or kubeconfig."""
    asyncio.run(_run(make_backend(kind, place), place, failpoint))


async def _run(backend: Backend, place: Path, failpoint: Failpoint | None) -> None:
    settings = Settings.read()
    logs.set_up("console")
    if failpoint is not None and failpoint.step in BACKEND_STEPS:
        failpoint.install(backend)

    class CrashingStore(Store):
        """The real store, which dies at its step."""

        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, **named)
            if failpoint is not None and failpoint.step in STORE_STEPS:
                failpoint.install(self)

    # a test has no ten seconds to wait
    config = replace(
        app.config_of(settings, backend), resync=0.5, missing_grace=3.0, engine_grace=3.0, mark_patience=3.0
    )
    with with_marker_directory(place):
        await app.serve(settings, backend, config, CrashingStore)
