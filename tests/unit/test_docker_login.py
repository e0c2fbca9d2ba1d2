"""Logins as the Docker command line keeps them: found, sent to their own registry alone, and never told."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from controller.backends.docker.login import HELPER_SECONDS, HUB, HUB_KEY, LoginError, registry_auth, registry_of

SECRET = "s3cret:with~colon?"
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def login(image: str, helper_seconds: float = HELPER_SECONDS) -> dict[str, Any] | None:
    header = asyncio.run(registry_auth(image, helper_seconds))
    if header is None:
        return None
    assert not set(header) & set("+/")  # the engine takes the URL-safe alphabet
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(header))
    return found


def helper(directory: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("busybox", "docker.io"),
        ("team/app:1", "docker.io"),
        ("docker.io/team/app", "docker.io"),
        (f"index.{HUB}/team/app", HUB),
        ("localhost/app", "localhost"),
        ("localhost:5000/app:1", "localhost:5000"),
        ("registry.example.com/team/app@sha256:" + "0" * 64, "registry.example.com"),
        ("host:5000", "docker.io"),  # an image called host with the tag 5000
    ],
)
def test_the_registry_of_an_image(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_a_login_is_read_at_each_pull_and_sent_to_its_own_registry_alone(home: Path) -> None:
    assert login("r.example/app") is None
    (home / "config.json").write_text(json.dumps({"auths": {"r.example": {"auth": BASIC}}}))
    assert login("r.example/app") == {"username": "me", "password": SECRET, "serveraddress": "r.example"}
    for other in ("r.example:5000/app", "evil.r.example/app", "r.example.evil/app", "app", "localhost:5000/app"):
        assert login(other) is None


@pytest.mark.parametrize("key", [HUB_KEY, f"index.{HUB}"])
def test_docker_hub_has_its_old_key(home: Path, key: str) -> None:
    (home / "config.json").write_text(json.dumps({"auths": {key: {"auth": BASIC}}}))
    found = login("team/app")
    assert found is not None
    assert (found["username"], found["serveraddress"]) == ("me", HUB_KEY)
    assert HUB_KEY.split("/") == ["https:", "", f"index.{HUB}", "v1", ""]
    assert login("r.example/app") is None


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ({"identitytoken": "tok", "auth": base64.b64encode(b"00000:").decode()}, {"identitytoken": "tok"}),
        ({"username": "u", "password": "p"}, {"username": "u", "password": "p"}),
        ({"registrytoken": "bearer"}, {"registrytoken": "bearer"}),
    ],
)
def test_tokens_are_sent_as_such(home: Path, entry: dict[str, str], sent: dict[str, str]) -> None:
    (home / "config.json").write_text(json.dumps({"auths": {"https://r.example/v1/": entry}}))
    assert (login("r.example/app") or {}).items() >= sent.items()


@pytest.mark.parametrize("kind", ["credsStore", "credHelpers"])
def test_a_credential_helper_is_asked(home: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "vault", 'read -r host; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"$host\\"}"', monkeypatch)
    config: dict[str, Any] = {"auths": {"r.example": {}}}
    config |= {"credsStore": "vault"} if kind == "credsStore" else {"credHelpers": {"r.example": "vault"}}
    (home / "config.json").write_text(json.dumps(config))
    assert login("r.example/app") == {"username": "me", "password": "r.example", "serveraddress": "r.example"}
    assert (login("app") is None) is (kind == "credHelpers")


def test_a_helpers_token_is_sent_as_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "vault", """echo '{"Username": "<token>", "Secret": "tok"}'""", monkeypatch)
    (home / "config.json").write_text('{"credsStore": "vault"}')
    assert login("r.example/app") == {"identitytoken": "tok", "serveraddress": "r.example"}


def test_a_helper_that_knows_no_login_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, "vault", "echo credentials not found in native keychain; exit 1", monkeypatch)
    (home / "config.json").write_text('{"credsStore": "vault"}')
    assert login("r.example/app") is None


@pytest.mark.parametrize(
    "config",
    [
        "{not json",
        "[]",
        json.dumps({"auths": {"r.example": {"auth": base64.b64encode(SECRET.replace(":", "").encode()).decode()}}}),
        '{"credsStore": "gone"}',
        '{"credsStore": "../bad"}',
        '{"credsStore": "leaks"}',
        '{"credsStore": "slow"}',
        '{"credsStore": "odd"}',
    ],
)
def test_a_login_that_cannot_be_read_is_told_without_the_secret(
    home: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(home, "slow", "exec sleep 60", monkeypatch)
    helper(home, "leaks", f"echo '{SECRET}'; echo '{SECRET}' >&2; exit 1", monkeypatch)
    helper(home, "odd", f"echo '{SECRET}'", monkeypatch)
    (home / "config.json").write_text(config)
    with pytest.raises(LoginError) as error:
        login("r.example/app", helper_seconds=0.2)
    assert "s3cret" not in str(error.value)


def test_without_a_home_there_is_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert login("r.example/app") is None
