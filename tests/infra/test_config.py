"""A bad key is refused before anything is made, with its name, what it was given and what it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import program
from infra.config import Config, ConfigError
from infra.preflight import PreflightError, preflight
from tests.infra.conftest import ROOT, Deploy, Recorded
from tests.support.kubeconfig import kubeconfig

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("docker", {"target": "podman"}, "target takes docker or kubernetes; it is 'podman'"),
    ("docker", {"target": ""}, "target is missing; it takes docker or kubernetes"),
    ("docker", {"appImage": "app:latest"}, "appImage takes an image with a version's tag or a digest"),
    ("docker", {"postgresImage": "post gres"}, "postgresImage takes an image, such as"),
    ("docker", {"databasePort": "0"}, "databasePort takes a whole number from 1 to 65535; it is '0'"),
    ("docker", {"httpPort": "http"}, "httpPort takes a whole number from 1 to 65535; it is 'http'"),
    ("docker", {"protectDatabase": "yes"}, "protectDatabase takes true or false; it is 'yes'"),
    ("docker", {"dockerSocket": "docker.sock"}, "dockerSocket takes an absolute path, or nothing"),
    ("docker", {"dockerSocketGroup": "docker"}, "dockerSocketGroup takes a whole number"),
    ("docker", {"maxRunning": "-1"}, "maxRunning takes a whole number from 0 to 1000000; it is '-1'"),
    ("docker", {"maxRuning": "1"}, "maxRuning is no key of this project; is maxRunning meant?"),
    ("docker", {"registry": "r.example"}, "registry is for target kubernetes alone"),
    ("kubernetes", {"dockerSocketGroup": "1"}, "dockerSocketGroup is for target docker alone"),
    ("kubernetes", {"registry": ""}, "registry is missing: images are built here"),
    ("kubernetes", {"registry": "https://r.example/"}, "registry takes a registry without scheme or closing slash"),
    ("kubernetes", {"registry": "", "pullRegistry": "r.example"}, "pullRegistry is the cluster's name for it"),
    ("kubernetes", {"registryUsername": "me"}, "registryPassword is missing, and registryUsername is given"),
    ("kubernetes", {"registryPassword": "pw"}, "registryUsername is missing, and registryPassword is given"),
    ("kubernetes", {"databaseUrl": "mysql://me:pw@h/it"}, "databaseUrl takes the owner's URL: postgresql://"),
    ("kubernetes", {"databaseUrl": "postgresql://me:pw@h:x/it"}, "databaseUrl takes the owner's URL: postgresql://"),
    ("kubernetes", {"databaseUrl": "postgresql://me:pw@h/it"}, "databaseCidrs is missing: where databaseUrl's server"),
    ("kubernetes", {"databaseCidrs": ["10.0.0.1/8"]}, "databaseCidrs takes ranges of addresses, such as 10.0.0.0/8"),
    ("kubernetes", {"egressCidrs": "10.0.0.0/8"}, "egressCidrs takes a list; it is '10.0.0.0/8'"),
    ("kubernetes", {"storageSize": "ten"}, "storageSize takes a Kubernetes quantity, such as 500m, 20 or 64Gi"),
    ("kubernetes", {"quotaCpu": "64 cores"}, "quotaCpu takes a Kubernetes quantity"),
    ("kubernetes", {"quotaCpu": "0"}, "quotaCpu takes a Kubernetes quantity"),
    ("kubernetes", {"quotaMemory": "12Gb"}, "quotaMemory takes a Kubernetes quantity"),
    ("kubernetes", {"quotaPods": "many"}, "quotaPods takes a whole number"),
    ("kubernetes", {"namespace": "My_App"}, "namespace takes at most 63 lower-case letters, digits and -"),
    ("kubernetes", {"sandboxNamespace": "one", "namespace": "one"}, "sandboxNamespace takes another namespace than"),
    ("kubernetes", {"requesterNamespaces": ["a", "B"]}, "requesterNamespaces takes at most 63 lower-case letters"),
    ("kubernetes", {"requesterNamespaces": ["a", "a"]}, "requesterNamespaces takes each namespace once, and none of"),
    ("kubernetes", {"requesterNamespaces": ["b"], "namespace": "b"}, "requesterNamespaces takes each namespace once"),
    ("kubernetes", {"monitoringNamespace": "-"}, "monitoringNamespace takes at most 63 lower-case letters"),
    ("kubernetes", {"imagePullSecret": "Login"}, "imagePullSecret takes lower-case letters, digits, - and ."),
    ("kubernetes", {"storageClass": "Fast"}, "storageClass takes lower-case letters, digits, - and ."),
    ("kubernetes", {"replicas": "two"}, "replicas takes a whole number from 0 to 100; it is 'two'"),
    ("kubernetes", {"jobOptions": {"runtimeClass": "gvisor"}}, "jobOptions runtimeClass is no option; there are"),
    ("kubernetes", {"jobOptions": "[]"}, "jobOptions takes an object"),
]


@pytest.mark.parametrize(("target", "config", "words"), BAD)
def test_a_bad_key_is_named_with_what_it_takes(
    dev: Deploy, prod: Deploy, target: str, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        (dev if target == "docker" else prod)(**config)


def test_a_default_that_is_no_name_is_refused_too(deploy: Deploy) -> None:
    words = "sandboxNamespace is missing, and its default 'ci-fixer-sandbox-Prod_1-sandboxes' is no name of a namespace"
    with pytest.raises(ConfigError, match=words):
        deploy(CLUSTER, stack="Prod_1")


def test_every_fault_is_told_at_once(dev: Deploy) -> None:
    with pytest.raises(ConfigError) as raised:
        dev(httpPort="x", databasePort="y", protectDatabase="z")
    assert [key for key in ("httpPort", "databasePort", "protectDatabase") if key not in str(raised.value)] == []


def test_no_password_stands_in_an_error(prod: Deploy) -> None:
    with pytest.raises(ConfigError) as raised:
        prod(databaseUrl="mysql://me:hidden@h/it", databaseCidrs=["10.0.0.0/8"])
    assert "hidden" not in str(raised.value)


def test_every_key_that_the_schema_describes_is_read_and_every_other_is_described(dev: Deploy) -> None:
    schema = set(yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"])
    fields = {re.sub(r"_(.)", lambda found: found[1].upper(), name) for name in Config.__dataclass_fields__}
    assert schema <= fields
    described = (ROOT / "docs" / "stacks.md").read_text()
    assert {key for key in fields - {"project", "stack"} if f"`{key}`" not in described} == set()
    assert dev().names("Network") == ["network"]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, deploy: Deploy) -> Any:
    """What the program hands to the preflight, with these keys."""

    def read(**keys: Any) -> Config:
        seen: list[Config] = []
        monkeypatch.setattr(program, "preflight", seen.append)
        recorded: Recorded = deploy(keys)
        assert recorded.all()
        return seen[0]

    return read


CLUSTER: dict[str, Any] = {"target": "kubernetes", "registry": "r.example"}


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> None:
    """Writes it, and makes it the one that is taken."""
    file.write_text(text)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))


def test_an_engine_that_does_not_answer_is_named(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    config: Any, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], host: str | None, words: str
) -> None:
    async def answers() -> None:
        pass

    monkeypatch.setattr("infra.preflight._engine", answers)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if host is not None:
        monkeypatch.setenv("DOCKER_HOST", host)
    found = config(target="docker", **keys)
    with pytest.raises(PreflightError, match=words):
        preflight(found)


@pytest.mark.parametrize("text", ["a: [b", "[]", "", "{}"])
def test_a_kubeconfig_that_is_none_is_named(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", text)
    found = config(**PREBUILT)
    with pytest.raises(PreflightError, match="no cluster is configured"):
        preflight(found)


PREBUILT = {"target": "kubernetes", "appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}


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
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], words: str
) -> None:
    nowhere = kubeconfig("it", {"server": "http://127.0.0.1:1"}, "t", current=False)
    use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(nowhere))
    found = config(**PREBUILT, **keys)
    with pytest.raises(PreflightError, match=words):
        preflight(found)
