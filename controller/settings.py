"""The settings from the environment, read once: the only place with a setting's name, unit and reason."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from annotated_types import Ge, Le
from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from controller.errors import SettingsError
from controller.protocol.names import IMAGE, LABEL, is_image, is_label

Read = TypeVar("Read", bound=BaseSettings)

RETENTION = Field(
    None,
    ge=1,
    le=100 * 365 * 86_400,
    description="seconds that an ended sandbox stays in the table; the owner sets it, through `migrate`",
)


class Settings(BaseSettings):
    """The controller's settings. The variable of a field is the field's name in capitals."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    database_url: str = Field(description="the database, with the login that the controller uses")
    sandbox_backend: Literal["kubernetes", "docker", "process"] = Field(
        "docker", description="what runs sandboxes; `process` isolates nothing, so it is never the default"
    )
    sandbox_image: str = Field("ci-fixer-sandbox:dev", description="image of sandboxes that name none")
    sandbox_namespace: str = Field("ci-fixer-sandboxes", description="Kubernetes namespace of the Jobs")
    sandbox_max_running: int = Field(
        100, ge=0, le=1_000_000, description="sandboxes launching or running at once, over all controllers"
    )
    sandbox_poll_seconds: float = Field(
        1.0, ge=0.05, le=60, description="seconds between looks at the queue if no notification comes"
    )
    sandbox_lease_seconds: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="seconds that a claimed row is left to a silent controller before another takes over",
    )
    sandbox_start_deadline_seconds: float = Field(
        600.0, ge=1, le=86_400, description="seconds from the first claim within which a sandbox must have started"
    )
    sandbox_output_bytes: int = Field(
        1 << 20, ge=1024, le=8 << 20, description="bytes kept of each attempt's output, from its end"
    )
    sandbox_retention_seconds: float | None = RETENTION
    sandbox_work_dir: Path = Field(
        Path(".work/sandboxes"), description="directory of the `process` backend's runs; must outlive the controller"
    )
    sandbox_job_options: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict,
        description="JSON for every Job: runtimeClassName, nodeSelector, tolerations, priorityClassName, "
        "imagePullSecrets (names), queue (Kueue's)",
    )
    http_port: int = Field(
        3000, ge=0, le=65_535, description="port of /healthz, /readyz and /metrics; 0 takes a free one"
    )
    log_format: Literal["json", "console"] = Field("json", description="log lines for machines or for people")

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str) -> str:
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a postgresql:// URL")
        return value

    @field_validator("sandbox_image")
    @classmethod
    def _is_image(cls, value: str) -> str:
        if not is_image(value):
            raise ValueError(f"must be {IMAGE}")
        return value

    @field_validator("sandbox_namespace")
    @classmethod
    def _is_namespace(cls, value: str) -> str:
        if not is_label(value):
            raise ValueError(f"must be the name of a namespace: {LABEL}")
        return value

    @field_validator("sandbox_work_dir")
    @classmethod
    def _is_directory(cls, value: Path) -> Path:
        if str(value).startswith("~"):
            raise ValueError("must be the path of a directory (~ is not expanded)")
        try:
            there = next(path for path in (value.absolute(), *value.absolute().parents) if path.exists())
        except OSError as error:
            raise ValueError(f"must be the path of a usable directory: {error.strerror}") from error
        if not there.is_dir():
            raise ValueError(f"must be the path of a directory, but {there} is a file")
        return value

    @field_validator("sandbox_job_options", mode="before")
    @classmethod
    def _is_object(cls, value: object) -> object:
        try:
            read = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise ValueError("must be a JSON object")
        return read

    @classmethod
    def read(cls) -> Self:
        """Reads the environment. Raises SettingsError that names every variable that is wrong or unknown."""
        known = {name.upper() for name in cls.model_fields} | set(PASSWORDS)
        return _read(cls, known, [name for name in os.environ if name.startswith("SANDBOX_") and name not in known])


class OwnersSettings(BaseSettings):
    """The settings of `migrate`: the owner's login, and what `migrate` writes into the database."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    database_url: str = Field(description="the database, with the owner's login")
    sandbox_retention_seconds: float | None = RETENTION
    sandbox_controller_password: str | None = None
    sandbox_requester_password: str | None = None
    log_format: Literal["json", "console"] = Field(
        "console", description="`console` by default: people run `migrate` by hand"
    )

    @classmethod
    def read(cls) -> Self:
        """Reads the environment. Raises SettingsError that names every variable that is wrong."""
        return _read(cls, {name.upper() for name in cls.model_fields}, [])


PASSWORDS = ("SANDBOX_CONTROLLER_PASSWORD", "SANDBOX_REQUESTER_PASSWORD")  # for `migrate` alone
SECRETS = {"DATABASE_URL", *PASSWORDS}
GIVEN_MOST = 100  # characters of a wrong value that an error shows


def _read(kind: type[Read], known: Set[str], unknown: Collection[str]) -> Read:
    faults = [f"{name} is not a setting; the settings are {', '.join(sorted(known))}" for name in sorted(unknown)]
    others = sorted(known - {"DATABASE_URL"})  # whose own check says more
    left_over = {name: fault for name in others if (fault := _left_over(os.environ.get(name, "")))}
    faults += [f"{name}{_given(name, os.environ[name])}: {fault}" for name, fault in left_over.items()]
    try:
        settings = kind()
    except ValidationError as error:
        faults += [_fault(kind, fault) for fault in error.errors() if str(fault["loc"][0]).upper() not in left_over]
    if faults:
        raise SettingsError("; ".join(faults))
    return settings


def _left_over(value: str) -> str | None:
    """What is wrong with a value in which an env file or a shell left characters that belong to no setting."""
    if value != value.strip():
        return "must not begin or end with white space"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'`":
        return "must not be in quotes, which some env files keep as part of the value"
    if any(character < " " or character == "\x7f" for character in value):
        return "must not contain control characters"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "must be UTF-8"
    return None


def _given(name: str, value: object) -> str:
    told = repr(value)
    return "" if name in SECRETS else f" = {told if len(told) <= GIVEN_MOST else told[:GIVEN_MOST] + '…'}"


def _fault(kind: type[BaseSettings], fault: ErrorDetails) -> str:
    field = str(fault["loc"][0])
    name = field.upper()
    if fault["type"] == "missing":
        return f"{name} is not set"
    told = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name}{_given(name, fault['input'])}: {_range(kind.model_fields[field]) or told}"


def _range(field: FieldInfo) -> str | None:
    """The range that a numeric setting takes, in words; None for any other setting."""
    least = next((rule.ge for rule in field.metadata if isinstance(rule, Ge)), None)
    most = next((rule.le for rule in field.metadata if isinstance(rule, Le)), None)
    if least is None or most is None:
        return None
    return f"must be a {'whole number' if field.annotation is int else 'number'} from {least:,} to {most:,}"
