"""What `make test-fast` promises: its tests need no engine and no cluster, and can reach none."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kubernetes import client, config

from controller.backends.base import Backend
from controller.backends.docker.backend import DockerBackend
from controller.backends.kubernetes.backend import KubernetesBackend
from controller.errors import BackendUnavailableError
from infra.cluster.client import ClusterClient, ClusterError
from tests.support.no_engine import CLUSTER, NOBODY

TESTS = Path(__file__).parents[1]
FAST = sorted(path for tier in ("unit", "infra") for path in (TESTS / tier).rglob("*.py"))
ENGINES = {f"tests.support.{name}" for name in ("cluster", "deployer", "engines", "marks", "remote_engine", "standing")}


def imported(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports, and of what it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                yield from (each.name for each in node.names)
            case ast.ImportFrom():
                yield from (str(node.module), *(f"{node.module}.{each.name}" for each in node.names))


def test_no_fast_test_asks_for_an_engine() -> None:
    assert len(FAST) > 50
    assert {name for name in ENGINES if not (TESTS.parent / f"{name.replace('.', '/')}.py").is_file()} == set()
    assert {path.name: found for path in FAST if (found := ENGINES & set(imported(path)))} == {}


@pytest.mark.parametrize(
    "backend", [DockerBackend("it"), KubernetesBackend("it", "it")], ids=lambda backend: type(backend).__name__
)
def test_a_backend_that_a_fast_test_opens_finds_nothing(backend: Backend) -> None:
    async def ask() -> None:
        try:
            await backend.open(uuid4())
        finally:
            await backend.close()

    with pytest.raises(BackendUnavailableError):
        asyncio.run(ask())


def test_a_client_that_a_fast_test_makes_finds_nothing() -> None:
    configuration = client.Configuration()
    config.load_kube_config(client_configuration=configuration)
    assert configuration.host == CLUSTER
    with pytest.raises(ClusterError, match=NOBODY):
        ClusterClient(NOBODY).get("/api/v1/nodes")
