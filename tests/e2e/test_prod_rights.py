"""The stack on a cluster, for real, by a login that a platform team gave just the rights that the document names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployer import LOGIN, Deployer, deployer
from tests.support.documented_roles import documented_roles
from tests.support.engines import need_cluster, need_docker
from tests.support.pulumi import POSTGRES, ROOT, Stack, need_pulumi

pytestmark = pytest.mark.alone

REGISTRY = os.environ.get("TEST_REGISTRY", "localhost:5000")  # that the engine pushes to and the cluster pulls from
Standing = Callable[..., Stack]


@pytest.fixture
def who() -> Iterator[Deployer]:
    """A login without rights, and two namespaces."""
    need_docker()
    need_cluster()
    need_pulumi()
    with deployer() as made:
        yield made


@pytest.fixture
def stack(who: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    """Makes a stack in the login's namespaces, that reaches the cluster as the login; gone afterwards."""
    made: list[Stack] = []

    def make() -> Stack:
        (tmp_path / "kubeconfig").write_text(who.kubeconfig())
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        config = {
            "target": "kubernetes",
            "registry": REGISTRY,
            "postgresImage": POSTGRES,
            "storageSize": "1Gi",
            "kubeContext": LOGIN,
            "createNamespaces": "false",
            "namespace": who.app,
            "sandboxNamespace": who.boxes,
        }
        made.append(Stack.make(who.home.replace("deployer-", "r"), tmp_path, config))
        return made[0]

    yield make
    for one in made:
        one.destroy()


def live(stack: Stack) -> None:
    """Brings it up, changes nothing, mends nothing, changes a setting, and ends it."""
    stack.run("preview")
    stack.up()
    stack.up("--expect-no-changes")
    stack.run("refresh", "--yes", "--skip-preview", "--run-program")
    stack.set("maxRunning", "7")
    stack.up()
    stack.destroy()


@pytest.mark.timeout(900)
def test_the_rights_that_the_document_names_are_enough(who: Deployer, stack: Standing) -> None:
    spaces = {"ci-fixer-sandbox-prod": who.app, "ci-fixer-sandbox-prod-sandboxes": who.boxes, None: None}
    for role in documented_roles(ROOT / "docs" / "stacks.md")[False]:
        who.may(role["rules"], spaces[role["metadata"].get("namespace")])
    live(stack())


@pytest.mark.timeout(900)
def test_an_admin_of_two_ready_namespaces_can_stand_up_a_stack(who: Deployer, stack: Standing) -> None:
    known: dict[str, Any] = {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"]}
    who.may([known | {"verbs": ["get"]}])
    for namespace in (who.app, who.boxes):
        who.bind("ClusterRole", "admin", namespace)
    live(stack())
