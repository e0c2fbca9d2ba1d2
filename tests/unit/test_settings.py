"""The environment is read once, and what is wrong with it is said all at once, without its secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest

from controller.backends.registry import create_backend
from controller.errors import SettingsError
from controller.settings import PASSWORDS, OwnersSettings, Settings

URL = "postgresql://u:s3cr3t@db/x"


@pytest.fixture(autouse=True)
def _database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)


NO_IMAGES = [
    "Python:3",
    "python:",
    ":3",
    "a b",
    "https://x/y",
    "-x",
    "x@sha256:12",
    "x/",
    "/x",
    "x//y",
    "é",
    "x:a:b",
]
IMAGES = [
    "python", "python:3.11-slim", "team/image", "registry.example.com/team/image:1", "localhost:5000/a/b_c__d-e.f:X_1",
    "Registry.Example.com/x", "localhost/x",
    f"x@sha256:{'a' * 64}", f"r.io/x:1@sha256:{'0' * 64}", f"sha256:{'a' * 64}",
]  # fmt: skip


def fault(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings.read()
    assert caught.value.__context__ is None  # the validator's own words hold every input
    return str(caught.value)


def test_the_defaults_suffice() -> None:
    settings = Settings.read()
    assert settings.database_url == URL
    assert (settings.sandbox_backend, settings.http_port, settings.sandbox_job_options) == ("docker", 3000, {})


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_MAX_RUNNING", "")
    assert Settings.read().sandbox_max_running == 100


def test_each_value_arrives_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SANDBOX_BACKEND": "process",
        "SANDBOX_POLL_SECONDS": "0.25",
        "SANDBOX_MAX_RUNNING": "0",
        "SANDBOX_WORK_DIR": "/var/x",
        "SANDBOX_JOB_OPTIONS": '{"nodeSelector": {"disk": "ssd"}}',
        "HTTP_PORT": "0",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()
    assert settings.sandbox_backend == "process"
    assert settings.sandbox_poll_seconds == 0.25
    assert settings.sandbox_max_running == settings.http_port == 0
    assert settings.sandbox_work_dir == Path("/var/x")
    assert settings.sandbox_job_options == {"nodeSelector": {"disk": "ssd"}}


def test_an_unknown_setting_stops_the_start_and_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fault(monkeypatch, SANDBOX_MAX_RUNING="3")
    assert "SANDBOX_MAX_RUNING is not a setting" in told
    assert "SANDBOX_MAX_RUNNING" in told


def test_the_passwords_of_migrate_are_known_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CONTROLLER_PASSWORD", "x")
    monkeypatch.setenv("SANDBOX_REQUESTER_PASSWORD", "x")
    Settings.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SANDBOX_BACKEND", "podman"),
        ("SANDBOX_MAX_RUNNING", "-1"),
        ("SANDBOX_MAX_RUNNING", "many"),
        ("SANDBOX_MAX_RUNNING", "1.5"),
        ("SANDBOX_POLL_SECONDS", "0"),
        ("SANDBOX_POLL_SECONDS", "nan"),
        ("SANDBOX_LEASE_SECONDS", "inf"),
        ("SANDBOX_START_DEADLINE_SECONDS", "0"),
        ("SANDBOX_OUTPUT_BYTES", "1"),
        ("SANDBOX_RETENTION_SECONDS", "0"),
        ("SANDBOX_RETENTION_SECONDS", "inf"),
        ("SANDBOX_RETENTION_SECONDS", "1e18"),
        ("SANDBOX_JOB_OPTIONS", "{"),
        ("SANDBOX_JOB_OPTIONS", "[1]"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "1e3"),
        ("LOG_FORMAT", "xml"),
        *(("SANDBOX_IMAGE", image) for image in NO_IMAGES),
        *(("SANDBOX_NAMESPACE", name) for name in ("A", "a_b", "-a", "a-", "a.b", "a/b", "a" * 64, "é")),
        *(("SANDBOX_WORK_DIR", path) for path in ("~/x", "~u", __file__, f"{__file__}/x", "/dev/null")),
    ],
)
def test_a_bad_value_is_told_with_its_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fault(monkeypatch, **{name: value})
    assert told.startswith(f"{name} = {value!r}: ")
    assert ";" not in told


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_taken_as_engines_take_it(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_IMAGE", image)
    assert Settings.read().sandbox_image == image


def test_a_long_value_is_told_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"SANDBOX_IMAGE = '{'a' * 99}…: must be an image reference" in fault(monkeypatch, SANDBOX_IMAGE="a" * 501)


def test_what_a_number_may_be_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(monkeypatch, SANDBOX_POLL_SECONDS="1s").endswith(": must be a number from 0.05 to 60")
    assert fault(monkeypatch, SANDBOX_POLL_SECONDS="1", HTTP_PORT="x").endswith(
        ": must be a whole number from 0 to 65,535"
    )


LEFT_OVER = {
    '"{}"': "must not be in quotes",
    "'{}'": "must not be in quotes",
    " {}": "must not begin or end with white space",
    "{}\r": "must not begin or end with white space",
    "{}\n": "must not begin or end with white space",
    "{}\x1b[2J{}": "must not contain control characters",
    "{}\udcff": "must be UTF-8",
}


@pytest.mark.parametrize("form", LEFT_OVER)
@pytest.mark.parametrize("name", sorted({name.upper() for name in Settings.model_fields} - {"DATABASE_URL"}))
def test_what_files_of_variables_leave_around_a_value_is_told(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = form.format("x", "y")
    told = fault(monkeypatch, **{name: value})
    assert told.startswith(f"{name} = {value!r}: {LEFT_OVER[form]}")
    assert told.isprintable()
    assert ";" not in told


@pytest.mark.parametrize("kind", [Settings, OwnersSettings])
@pytest.mark.parametrize("name", PASSWORDS)
@pytest.mark.parametrize("form", LEFT_OVER)
def test_a_password_is_held_to_the_same_and_never_told(
    kind: type[Settings] | type[OwnersSettings], name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, form.format("s3cr3t", "s3cr3t"))
    with pytest.raises(SettingsError) as caught:
        kind.read()
    assert str(caught.value).startswith(f"{name}: {LEFT_OVER[form]}")
    assert "s3cr3t" not in str(caught.value)


def test_migrate_reads_its_own_and_an_empty_password_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_CONTROLLER_PASSWORD", "")
    monkeypatch.setenv("SANDBOX_REQUESTER_PASSWORD", "x y'\"z")
    settings = OwnersSettings.read()
    assert (settings.sandbox_controller_password, settings.sandbox_requester_password) == (None, "x y'\"z")
    assert settings.log_format == "console"


@pytest.mark.parametrize(("name", "value"), [("LOG_FORMAT", "xml"), ("SANDBOX_RETENTION_SECONDS", "nan")])
def test_migrate_refuses_what_run_refuses(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} = '{value}': must be "):
        OwnersSettings.read()


@pytest.mark.parametrize(
    "value",
    ["unix://", "unix:nope", "/var/run/docker.sock", '"unix:///x"', " unix:///x", "npipe:////./pipe/docker_engine", "tcp://",
     "tcp://h:port", "fd://", "docker", "http://u:s3cr3t@h:1", "http://[::1"],
)  # fmt: skip
def test_a_docker_host_that_is_none_is_told_before_the_engine_is_asked(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", value)
    with pytest.raises(
        SettingsError, match=r"^DOCKER_HOST = .*: must be unix:///PATH/OF/SOCKET or tcp://HOST:PORT"
    ) as told:
        create_backend(Settings.read())
    assert "s3cr3t" not in str(told.value)


def test_an_empty_docker_host_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "")
    create_backend(Settings.read())
    assert "DOCKER_HOST" not in os.environ


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"queue": "a b"}, "queue = 'a b': must be at most 253"),
        ({"runtimeClassName": ""}, "runtimeClassName = '': must be at most 253"),
        ({"priorityClassName": "Low"}, "priorityClassName = 'Low': must be"),
        ({"imagePullSecrets": ["a", "B"]}, "imagePullSecrets.1 = 'B': must be"),
        ({"nodeSelector": {"a b": "c"}}, "must be a label's key"),
        ({"nodeSelector": {"a/b/c": "c"}}, "must be a label's key"),
        ({"nodeSelector": {"a": "c d"}}, "nodeSelector.a = 'c d': must be a label's value"),
        ({"tolerations": [{"keys": "x"}]}, "keys is no field of a toleration; there are key, "),
        ({"tolerations": [{"tolerationSeconds": "5"}]}, "tolerationSeconds must be a number"),
        ({"tolerations": [{"key": ["x"]}]}, "key must be a text"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["kubernetes", "process"])
def test_a_job_option_of_no_form_is_told_with_its_name(
    options: dict[str, Any], told: str, backend: Literal["kubernetes", "process"], tmp_path: Path
) -> None:
    settings = Settings(
        database_url=URL, sandbox_backend=backend, sandbox_job_options=options, sandbox_work_dir=tmp_path
    )
    with pytest.raises(SettingsError, match=r"^SANDBOX_JOB_OPTIONS: ") as caught:
        create_backend(settings)
    assert told in str(caught.value)


def test_several_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    told = fault(monkeypatch, SANDBOX_TYPO="x", SANDBOX_JOB_OPTIONS="{", HTTP_PORT="x", SANDBOX_BACKEND="podman")
    for name in ("DATABASE_URL is not set", "SANDBOX_TYPO", "SANDBOX_JOB_OPTIONS", "HTTP_PORT", "SANDBOX_BACKEND"):
        assert name in told


@pytest.mark.parametrize("url", ["mysql://u:s3cr3t@db/x", "s3cr3t", "host=db password=s3cr3t"])
def test_the_urls_password_is_never_in_the_message(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fault(monkeypatch, DATABASE_URL=url, HTTP_PORT="x")
    assert "DATABASE_URL: must be a postgresql:// URL" in told
    assert "s3cr3t" not in told
