"""A stack that cannot come up is refused before anything is made, with what is missing and where."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pulumi
import pytest
import yaml
from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.config import kube_config

from infra.config import Config
from infra.errors import PreflightError
from infra.kubernetes_pods import CONTROLLER, Place
from infra.preflight import preflight
from infra.preflight_cluster import Cluster, find_cluster
from tests.infra.conftest import configure
from tests.support.engines import need_cluster
from tests.support.kubeconfig import kubeconfig
from tests.support.ports import free_ports

Configured = Callable[..., Config]
PREBUILT = {"target": "kubernetes", "appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}


@pytest.fixture
def config() -> Iterator[Callable[..., Config]]:
    """The configuration that the program reads, with these keys."""

    def read(**keys: Any) -> Config:
        configure(keys, "it", ())
        return Config.read()

    yield read
    pulumi.runtime.reset_options()


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The ports of the stack's own containers, of an engine that answers here."""
    ports: set[int] = set()

    async def answers(host: str, containers: Sequence[str]) -> set[int]:
        return ports

    monkeypatch.setattr("infra.preflight_engine._ports_of", answers)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return ports


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> None:
    """Writes it, and makes it the one that is taken."""
    file.write_text(text)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))


def test_an_engine_that_does_not_answer_is_named(config: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(target="docker", dockerSocketGroup=0)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(PreflightError, match=r"Docker engine.*does not answer.*set DOCKER_HOST"):
        preflight(found)


@pytest.mark.parametrize(
    ("keys", "host", "words"),
    [
        (
            {"dockerSocket": "/nowhere.sock"},
            None,
            "there is no socket /nowhere.sock: ci-fixer-sandbox:dockerSocket takes",
        ),
        ({}, "ssh://there", "the Docker engine is at ssh://there, and ci-fixer-sandbox:dockerSocketGroup is missing"),
    ],
)
def test_a_socket_that_cannot_be_mounted_is_named(
    config: Configured,
    ours: set[int],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, str],
    host: str | None,
    words: str,
) -> None:
    if host is not None:
        monkeypatch.setenv("DOCKER_HOST", host)
    ports = dict(zip(("databasePort", "httpPort"), free_ports(2), strict=True))
    found = config(target="docker", **ports, **keys)
    with pytest.raises(PreflightError, match=words):
        preflight(found)


def test_a_port_that_another_program_has_is_named_and_one_of_the_stacks_own_is_not_refused(
    config: Configured, ours: set[int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = config(target="docker", dockerSocket="", databasePort=port, httpPort=free_ports(1)[0])
        taken = f"port {port} of 127.0.0.1 is taken by another program: end it, or pulumi config set .* databasePort"
        with pytest.raises(PreflightError, match=taken):
            preflight(found)
        ours.add(port)
        assert preflight(found) is None


@pytest.mark.parametrize("text", ["a: [b", "[]", "", "{}"])
def test_a_file_that_is_no_kubeconfig_is_refused(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", text)
    found = config(**PREBUILT)
    with pytest.raises(PreflightError, match="no cluster is configured"):
        preflight(found)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {},
            "no cluster is configured: .*current-context.*set KUBECONFIG to .*ci-fixer-sandbox:kubeContext",
        ),
        ({"kubeContext": "other"}, "no cluster is configured: .*other.*kubeContext to a context of it"),
        ({"kubeContext": "it"}, "the cluster at http://127.0.0.1:1 .context it. does not answer"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], words: str
) -> None:
    nowhere = kubeconfig("it", {"server": "http://127.0.0.1:1"}, "t", current=False)
    use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(nowhere))
    found = config(**PREBUILT, **keys)
    with pytest.raises(PreflightError, match=words):
        preflight(found)


def test_of_several_kubeconfigs_no_context_is_taken_for_the_one_in_use(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'one'}{os.pathsep}{tmp_path / 'other'}")
    found = config(**PREBUILT)
    with pytest.raises(PreflightError, match="kubeContext is missing: KUBECONFIG names several files"):
        preflight(found)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two of the cluster's, made as this stack makes its own."""
    need_cluster()
    kubernetes_config.load_kube_config()
    core, names = client.CoreV1Api(), [f"preflight-{uuid4().hex[:8]}" for _ in range(2)]
    labels = Place("ci-fixer-sandbox", "it").labels(CONTROLLER)
    for name in names:
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    yield names
    for name in names:
        core.delete_namespace(name)


def test_a_cluster_is_the_same_by_whatever_context_it_is_reached(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_cluster()
    found = find_cluster(config(**PREBUILT))
    file = Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)[0]).expanduser()
    renamed = yaml.safe_load(file.read_text())
    renamed["contexts"] = [one | {"name": "another"} for one in renamed["contexts"] if one["name"] == found.context]
    use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(renamed))
    assert find_cluster(config(**PREBUILT, kubeContext="another")) == Cluster("another", found.uid)


def test_what_the_configuration_says_is_in_the_cluster_is_looked_for(config: Configured, namespaces: list[str]) -> None:
    app, boxes = namespaces
    theirs: dict[str, Any] = {**PREBUILT, "createNamespaces": False, "namespace": app, "sandboxNamespace": boxes}
    assert find_cluster(replace(config(**theirs), stack="another")).uid
    missing: list[tuple[dict[str, Any], str]] = [
        ({"namespace": "nowhere-1"}, "has no namespace nowhere-1: create it first"),
        ({"requesterNamespaces": ["nowhere-2"]}, "has no namespace nowhere-2: create it first"),
        ({"imagePullSecret": "login"}, f"has no secret login in namespace {app}, which imagePullSecret names: create"),
    ]
    for keys, words in missing:
        with pytest.raises(PreflightError, match=words):
            find_cluster(replace(config(**theirs | keys), stack="another"))


def test_a_namespace_that_the_stack_made_cannot_be_given_up_with_all_in_it(
    config: Configured, namespaces: list[str]
) -> None:
    app, boxes = namespaces
    found = config(**PREBUILT, createNamespaces=False, namespace=app, sandboxNamespace=boxes)
    with pytest.raises(PreflightError, match=f"namespace {app} is this stack's own, and would go with all in it"):
        find_cluster(found)
