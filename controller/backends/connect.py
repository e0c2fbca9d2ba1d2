"""The backend that the settings name."""

from __future__ import annotations

import logging
from typing import assert_never

from controller.backends.base import Backend
from controller.errors import SettingsError
from controller.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = {"kubernetes": 64, "docker": 8, "process": 16, "memory": 1000}  # calls that each kind of engine takes at once


def connect(settings: Settings) -> Backend:
    """Each engine's module, and its library, is imported only where it is used."""
    match settings.sandbox_backend:
        case "docker":
            from controller.backends.docker import DockerBackend

            return DockerBackend(settings.sandbox_image)
        case "process":
            from controller.backends.process import ProcessBackend

            log.warning("SANDBOX_BACKEND=process isolates nothing: commands run as this user, on this host")
            return ProcessBackend(settings.sandbox_work_dir, output_bytes=settings.sandbox_output_bytes)
        case "memory":
            from controller.backends.memory import MemoryBackend

            log.warning("SANDBOX_BACKEND=memory runs nothing: it pretends, for tests and measurements")
            return MemoryBackend()
        case "kubernetes":
            raise SettingsError("SANDBOX_BACKEND=kubernetes is not built yet: use docker or process")
    assert_never(settings.sandbox_backend)
