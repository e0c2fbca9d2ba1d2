"""The backend that the settings name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, assert_never

from pydantic import TypeAdapter, ValidationError

from controller.backends.base import Backend
from controller.backends.kubernetes.job import JobOptions
from controller.errors import SettingsError
from controller.settings import Settings

log = logging.getLogger(__name__)

DOCKER_HOST = re.compile(r"unix:///.+|(tcp|https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?|ssh://.+")


def connect(settings: Settings) -> Backend:
    """Each engine's module, and its library, is imported only where it is used. Raises SettingsError."""
    options = job_options(settings.sandbox_job_options)
    match settings.sandbox_backend:
        case "docker":
            from controller.backends.docker.backend import DockerBackend

            _check_docker_host()
            return DockerBackend(settings.sandbox_image)
        case "process":
            from controller.backends.process.backend import ProcessBackend

            log.warning("SANDBOX_BACKEND=process isolates nothing: commands run as this user, on this host")
            return ProcessBackend(settings.sandbox_work_dir, output_bytes=settings.sandbox_output_bytes)
        case "kubernetes":
            from controller.backends.kubernetes.backend import KubernetesBackend

            return KubernetesBackend(
                settings.sandbox_namespace,
                settings.sandbox_image,
                options=options,
                start_deadline=settings.sandbox_start_deadline_seconds,
                output_bytes=settings.sandbox_output_bytes,
            )
    assert_never(settings.sandbox_backend)


def _check_docker_host() -> None:
    given = os.environ.get("DOCKER_HOST")
    if given == "":
        del os.environ["DOCKER_HOST"]  # an empty variable counts as not set: for the engine's library too
    elif given is not None and not DOCKER_HOST.fullmatch(given):
        shown = re.sub("//[^/]*@", "//…@", given)[:100]
        raise SettingsError(
            f"DOCKER_HOST = {shown!r}: must be unix:///PATH/OF/SOCKET or tcp://HOST:PORT, without quotes"
        )


def job_options(given: Mapping[str, Any]) -> JobOptions:
    """Raises SettingsError that names the option and what it takes."""
    known = [field.name for field in fields(JobOptions)]
    for name in given:
        if name not in known:
            raise SettingsError(f"SANDBOX_JOB_OPTIONS: {name} is no option; there are {', '.join(known)}")
    try:
        return TypeAdapter(JobOptions).validate_python(dict(given))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        told = fault["msg"].removeprefix("Value error, ")
        raise SettingsError(f"SANDBOX_JOB_OPTIONS: {name} = {str(fault['input'])[:100]!r}: {told}") from None
