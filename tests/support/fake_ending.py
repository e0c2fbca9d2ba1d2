"""Ends that touch no engine and no cluster, and note when they came."""

from __future__ import annotations

from typing import Any

import pytest

from infra.components.docker import database as docker_database
from infra.ending.deletions import Deletions
from infra.ending.docker import DockerEnd
from infra.ending.kubernetes import KubernetesEnd
from infra.stacks import kubernetes as prod


def fake_ending(monkeypatch: pytest.MonkeyPatch, done: list[tuple[str, str]]) -> None:
    """Notes in `done` what would be ended: `end`, `drain`."""

    def noted(what: str) -> Any:
        async def note(*_: object, **__: object) -> None:
            done.append(("end", what))

        return note

    for kind in (DockerEnd, KubernetesEnd):
        for act in ("drain", "drain_alone"):
            monkeypatch.setattr(kind, act, noted(act))
    for act in ("free_volume", "empty"):
        monkeypatch.setattr(KubernetesEnd, act, noted(act))
    monkeypatch.setattr(Deletions, "watch", noted("watch"))
    monkeypatch.setattr(docker_database, "remove", noted("remove"))
    monkeypatch.setattr(prod, "sweep", noted("sweep"))
