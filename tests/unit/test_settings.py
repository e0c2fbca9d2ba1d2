"""The environment is read once, and what is wrong with it is said all at once, without its secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import SettingsError
from controller.settings import Settings

URL = "postgresql://u:s3cr3t@db/x"


@pytest.fixture(autouse=True)
def _database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)


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
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_told_with_its_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fault(monkeypatch, **{name: value})
    assert told.startswith(f"{name} = {value!r}: ")
    assert ";" not in told


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
