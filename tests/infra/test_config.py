"""A bad key is refused before anything is made, with its name, what it was given and what it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from infra.config import KEYS, Config, document, values
from infra.config.document import with_schema, with_table
from infra.config.keys import Key, written
from infra.errors import ConfigError
from tests.support.config_keys import EVERY_KEY, schema_defaults
from tests.support.mocked_stack import ROOT, Deploy, configure

CLUSTER: dict[str, Any] = {"target": "kubernetes", "registry": "r.example"}
PREBUILT = {"appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}
EXISTING = {"databaseUrl": "postgresql://me:pw@h/it", "databaseCidrs": ["10.0.0.0/8"]}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("docker", {"target": "podman"}, "target takes docker or kubernetes; it is 'podman'"),
    ("docker", {"target": ""}, "target is missing; it takes docker or kubernetes"),
    ("docker", {"appImage": "app:latest"}, "appImage takes an image with a version's tag or a digest"),
    ("docker", {"sandboxImage": "app:latest@sha256:12"}, "sandboxImage takes an image reference, [registry/]name"),
    ("docker", {"sandboxImage": "r.example/Team/box:1"}, "sandboxImage takes an image reference, [registry/]name"),
    ("docker", {"sandboxImage": "r.example:5000/box"}, "sandboxImage takes an image with a version's tag or a digest"),
    ("docker", {"sandboxImage": f"r.example/{'b' * 500}:1"}, "sandboxImage takes an image reference, [registry/]name"),
    ("docker", {"postgresImage": "post gres"}, "postgresImage takes an image reference, [registry/]name"),
    ("docker", {"databasePort": "0"}, "databasePort takes a whole number from 1 to 65535; it is '0'"),
    ("docker", {"httpPort": "http"}, "httpPort takes a whole number from 1 to 65535; it is 'http'"),
    ("docker", {"protectDatabase": "yes"}, "protectDatabase takes true or false; it is 'yes'"),
    ("docker", {"dockerSocket": "docker.sock"}, "dockerSocket takes an absolute path, or an empty value"),
    ("docker", {"dockerSocketGroup": "docker"}, "dockerSocketGroup takes a whole number"),
    ("docker", {"maxRunning": "-1"}, "maxRunning takes a whole number from 0 to 1000000; it is '-1'"),
    ("docker", {"maxRuning": "1"}, "maxRuning is not a key of this project; did you mean maxRunning?"),
    ("docker", {"dockerSocket": "", "dockerSocketGroup": "1"}, "dockerSocketGroup needs dockerSocket, which is empty"),
    ("docker", {"httpPort": 5432}, "httpPort must differ from databasePort"),
    ("docker", {"quotaPods": 20}, "quotaPods applies only to the target kubernetes"),
    ("kubernetes", {"httpPort": 3001}, "httpPort applies only to the target docker"),
    ("docker", {"registry": "r.example"}, "registry applies only to the target kubernetes"),
    ("kubernetes", {"dockerSocketGroup": "1"}, "dockerSocketGroup applies only to the target docker"),
    ("kubernetes", {"registry": ""}, "registry is missing: images are built here"),
    ("kubernetes", {"registry": "https://r.example/"}, "registry takes a registry without scheme or closing slash"),
    ("kubernetes", {"registry": "r.example/Team"}, "registry takes a registry without scheme or closing slash"),
    ("kubernetes", {"registry": "r.example/a//b"}, "registry takes a registry without scheme or closing slash"),
    ("kubernetes", {"registry": "team"}, "registry takes the registry's host too, such as docker.io/team"),
    ("kubernetes", {"registry": "index.docker.io/team"}, "registry takes docker.io for Docker Hub"),
    ("kubernetes", {**PREBUILT}, "registry applies only to images that are built here, and both are prebuilt"),
    (
        "kubernetes",
        {**PREBUILT, "pullRegistry": "r.example"},
        "pullRegistry applies only to images that are built here",
    ),
    ("kubernetes", {"registryUsername": "me"}, "registryPassword is missing, and registryUsername is given"),
    ("kubernetes", {"registryPassword": "pw"}, "registryUsername is missing, and registryPassword is given"),
    ("kubernetes", {"databaseUrl": "mysql://me:pw@h/it"}, "databaseUrl takes the owner's URL: postgresql://"),
    ("kubernetes", {"databaseUrl": "postgresql://me:pw@h:x/it"}, "databaseUrl takes the owner's URL: postgresql://"),
    (
        "kubernetes",
        {"databaseUrl": "postgresql://me:pw@h/it"},
        "databaseCidrs is missing: the addresses of databaseUrl's server",
    ),
    ("kubernetes", {"databaseCidrs": ["10.0.0.1/8"]}, "databaseCidrs takes ranges of addresses, such as 10.0.0.0/8"),
    ("kubernetes", {"databaseCidrs": ["10.0.0.0/8"]}, "databaseCidrs needs databaseUrl, which is missing"),
    (
        "kubernetes",
        {**EXISTING, "storageClass": "fast"},
        "storageClass applies only to a database that the stack creates",
    ),
    ("kubernetes", {**EXISTING, "storageSize": "1Gi"}, "storageSize applies only to a database that the stack creates"),
    ("kubernetes", {**EXISTING, "postgresImage": "postgres:16.1"}, "postgresImage applies only to a database that"),
    (
        "kubernetes",
        {**EXISTING, "databasePassword": "pw"},
        "databasePassword applies only to a database that the stack creates",
    ),
    ("kubernetes", {"egressCidrs": ["DNS"]}, "egressCidrs takes ranges of addresses, such as 10.0.0.0/8, and dns for"),
    ("kubernetes", {"egressCidrs": "10.0.0.0/8"}, "egressCidrs takes a list; it is '10.0.0.0/8'"),
    ("kubernetes", {"storageSize": "ten"}, "storageSize takes a Kubernetes quantity, such as 500m, 20 or 64Gi"),
    ("kubernetes", {"quotaCpu": "64 cores"}, "quotaCpu takes a Kubernetes quantity"),
    ("kubernetes", {"quotaCpu": "0"}, "quotaCpu takes a Kubernetes quantity"),
    ("kubernetes", {"quotaMemory": "12Gb"}, "quotaMemory takes a Kubernetes quantity"),
    ("kubernetes", {"quotaPods": "many"}, "quotaPods takes a whole number"),
    ("kubernetes", {"namespace": "My_App"}, "namespace takes at most 63 lower-case letters, digits and -"),
    ("kubernetes", {"sandboxNamespace": "one", "namespace": "one"}, "sandboxNamespace must differ from the app's"),
    ("kubernetes", {"requesterNamespaces": ["a", "B"]}, "requesterNamespaces takes at most 63 lower-case letters"),
    ("kubernetes", {"requesterNamespaces": ["a", "a"]}, "requesterNamespaces takes each namespace once, and none of"),
    ("kubernetes", {"requesterNamespaces": ["b"], "namespace": "b"}, "requesterNamespaces takes each namespace once"),
    ("kubernetes", {"monitoringNamespace": "-"}, "monitoringNamespace takes at most 63 lower-case letters"),
    (
        "kubernetes",
        {"monitoringNamespace": "b", "sandboxNamespace": "b"},
        "monitoringNamespace must differ from the sandboxes'",
    ),
    (
        "kubernetes",
        {"imagePullSecret": "Login"},
        "imagePullSecret takes at most 253 lower-case letters, digits, - and ., with",
    ),
    ("kubernetes", {"imagePullSecret": "a..b"}, "imagePullSecret takes at most 253 lower-case letters, digits, - and"),
    ("kubernetes", {"storageClass": "Fast"}, "storageClass takes at most 253 lower-case letters, digits, - and ."),
    ("kubernetes", {"storageClass": "fast."}, "storageClass takes at most 253 lower-case letters, digits, - and ."),
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


@pytest.mark.parametrize(
    "image", ["busybox:1", "r.example:5000/a/b:1.4", "localhost/b:1", f"b@sha256:{'0' * 64}", f"b:1@sha256:{'0' * 64}"]
)
def test_an_image_by_a_versions_tag_or_a_digest_is_taken(image: str) -> None:
    assert values.image(image) == image


@pytest.mark.parametrize("stack", ["Prod_1", "p" * 27])
def test_a_stacks_name_that_is_no_part_of_a_name_in_the_cluster_is_refused(deploy: Deploy, stack: str) -> None:
    words = f"the stack's name '{stack}' cannot be part of a Kubernetes name: use .* at most 26 characters"
    with pytest.raises(ConfigError, match=words):
        deploy(CLUSTER | {"namespace": "one", "sandboxNamespace": "two"}, stack=stack)


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("databasePassword", {}),
        ("databaseUrl", {"databaseCidrs": ["10.0.0.0/8"]}),
        ("registryPassword", {"registryUsername": "me"}),
    ],
)
def test_a_password_that_stands_in_clear_in_the_stacks_file_is_refused(
    deploy: Deploy, key: str, others: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as raised:
        deploy(CLUSTER | others | {key: EXISTING["databaseUrl"]}, secrets=())
    assert f"{key} is in plain text in the stack's file: remove it there, and set it with pulumi config set" in str(
        raised.value
    )
    assert "me:pw" not in str(raised.value)


def test_every_fault_is_told_at_once(dev: Deploy) -> None:
    with pytest.raises(ConfigError) as raised:
        dev(httpPort="x", databasePort="y", protectDatabase="z")
    assert [key for key in ("httpPort", "databasePort", "protectDatabase") if key not in str(raised.value)] == []


def test_no_password_stands_in_an_error(prod: Deploy) -> None:
    with pytest.raises(ConfigError) as raised:
        prod(databaseUrl="mysql://me:hidden@h/it", databaseCidrs=["10.0.0.0/8"])
    assert "hidden" not in str(raised.value)


def test_every_key_of_the_schema_is_read_and_every_key_is_described() -> None:
    schema = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    assert {key for key in schema if ":" not in key} <= EVERY_KEY
    rows = re.findall(r"^\| (`.*?) \| (?:both|docker|kubernetes) \|", (ROOT / "docs" / "stacks.md").read_text(), re.M)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == EVERY_KEY


@pytest.mark.parametrize(("file", "rewritten"), [(document.SCHEMA, with_schema), (document.TABLE, with_table)])
def test_schema_and_document_say_of_the_keys_what_is_declared(
    file: Path, rewritten: Callable[[str, Iterable[Key]], str]
) -> None:
    text = (ROOT / file).read_text()
    assert text == rewritten(text, KEYS.values()), "run python -m infra.config.document"


def test_what_follows_the_written_schema_stays_and_a_schema_without_its_marks_is_refused() -> None:
    text = (ROOT / document.SCHEMA).read_text()
    more = "  aws:region:\n    value: eu-central-1\n"
    assert with_schema(text + more, KEYS.values()) == text + more
    for mark in (document.SCHEMA_BEGINS, document.SCHEMA_ENDS):
        with pytest.raises(ValueError, match="has no lines"):
            with_schema(text.replace(mark, ""), KEYS.values())


def test_the_schema_gives_every_stack_the_declared_defaults_and_requires_nothing_but_the_target() -> None:
    schema = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
    given = {key: written(one["default"]) for key, one in schema.items() if "default" in one}
    assert given == schema_defaults()
    assert {key for key, one in schema.items() if "type" in one and "default" not in one} == {"target"}


def test_a_default_that_only_the_schema_changes_is_not_taken_for_a_key_that_the_stack_gives(tmp_path: Path) -> None:
    schema, text = tmp_path / "Pulumi.yaml", (ROOT / "Pulumi.yaml").read_text()
    schema.write_text(text.replace("default: 3000", "default: 3001").replace("default: 500", "default: 501"))
    assert schema.read_text().count("3001") == schema.read_text().count("501") == 1
    configure({**CLUSTER, "createLimits": False, "httpPort": 3001, "quotaPods": 501}, "it", ())
    try:
        assert Config.read(schema).quota_pods == 501
        with pytest.raises(
            ConfigError, match=r"httpPort applies only to the target docker\n.*quotaPods needs a Resource"
        ):
            Config.read()
    finally:
        pulumi.runtime.reset_options()


def test_a_key_of_the_provider_that_the_program_does_not_read_is_refused() -> None:
    configure({"target": "docker"}, "it", ())
    pulumi.runtime.set_config("docker:host", "tcp://127.0.0.1:2375")
    try:
        with pytest.raises(
            ConfigError, match="docker:host would send the provider to an engine that the preflight does not check"
        ):
            Config.read()
    finally:
        pulumi.runtime.reset_options()
