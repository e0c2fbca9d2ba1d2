"""Creates the backend that the settings name."""

from __future__ import annotations

import logging
import os
import re
from typing import assert_never

from controller.backends.base import Backend
from controller.backends.kubernetes.options import job_options
from controller.errors import SettingsError
from controller.settings import Settings

log = logging.getLogger(__name__)

DOCKER_HOST = re.compile(r"unix:///.+|(tcp|https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?|ssh://.+")


def create_backend(settings: Settings) -> Backend:
    """Creates it; connects to nothing yet. Raises SettingsError.

    An engine's module and its client library are imported only if the settings name that engine.
    """
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
