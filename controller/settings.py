"""What the environment sets, read once; the only place with a setting's name, unit and reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from controller.errors import SettingsError

RETENTION = Field(
    None,
    ge=1,
    le=100 * 365 * 86_400,
    description="seconds that an ended sandbox stays in the table: its owner's to say",
)


class Settings(BaseSettings):
    """The controller's settings. A field's name in capitals is its variable's."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    database_url: str = Field(description="the database, as the login that the controller is to use")
    sandbox_backend: Literal["kubernetes", "docker", "process", "memory"] = Field(
        "docker", description="what runs sandboxes; `process` isolates nothing, and so must be said outright"
    )
    sandbox_image: str = Field("ci-fixer-sandbox:dev", description="image of sandboxes that name none")
    sandbox_namespace: str = Field("ci-fixer-sandboxes", description="Kubernetes namespace of the Jobs")
    sandbox_max_running: int = Field(
        100, ge=0, le=1_000_000, description="sandboxes launching or running at once, over all controllers"
    )
    sandbox_poll_seconds: float = Field(
        1.0, ge=0.05, le=60, description="seconds between looks at the queue where no notification comes"
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
        1 << 20, ge=1024, le=8 << 20, description="bytes of output kept of each attempt, its end"
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
        """The environment's settings. Raises SettingsError naming every variable that is wrong or unknown."""
        known = {name.upper() for name in cls.model_fields} | set(PASSWORDS)
        faults = [
            f"{name} is not a setting; there are {', '.join(sorted(known))}"
            for name in sorted(os.environ)
            if name.startswith("SANDBOX_") and name not in known
        ]
        try:
            settings = cls()
        except ValidationError as error:
            faults += [_fault(fault) for fault in error.errors()]
        if faults:
            raise SettingsError("; ".join(faults))
        return settings


class OwnersSettings(BaseSettings):
    """What `migrate` writes into the database, beside the passwords."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    sandbox_retention_seconds: float | None = RETENTION

    @classmethod
    def read(cls) -> Self:
        """The environment's. Raises SettingsError."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("; ".join(map(_fault, error.errors()))) from error


PASSWORDS = ("SANDBOX_CONTROLLER_PASSWORD", "SANDBOX_REQUESTER_PASSWORD")  # for `migrate` alone


def _fault(fault: ErrorDetails) -> str:
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "missing":
        return f"{name} is not set"
    given = "" if name == "DATABASE_URL" else f" = {fault['input']!r}"
    return f"{name}{given}: {fault['msg'].removeprefix('Value error, ')}"
