"""The program under mocks, as the tests of this directory ask for it, with no engine and no cluster in reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mocked_stack import Deploy, deploying, on_docker, on_kubernetes
from tests.support.no_engine import no_engine


@pytest.fixture(autouse=True)
def nothing_in_reach() -> Iterator[None]:
    """A test that asks an engine or a cluster by mistake fails, whatever this machine has."""
    with no_engine():
        yield


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Runs the program with these keys over Pulumi.yaml's defaults; a test that looks at nothing of it fails."""
    with deploying(monkeypatch) as run:
        yield run


@pytest.fixture
def dev(deploy: Deploy) -> Deploy:
    """The stack on Docker, with these keys."""
    return on_docker(deploy)


@pytest.fixture
def prod(deploy: Deploy) -> Deploy:
    """The stack on Kubernetes, with these keys."""
    return on_kubernetes(deploy)
