"""The marks of controllers on a host of the process backend: empty files in the work directory."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote
from uuid import UUID

from controller.errors import TransientEngineError


class ProcessMarks:
    """The marks of one installation in one work directory. They are written in place: a thread would take longer."""

    def __init__(self, work_dir: Path, installation: UUID) -> None:
        self._directory = work_dir / "controllers" / str(installation)
        self.advice = f"on the copy, with nothing running there, remove {work_dir / 'engine'}"

    async def names(self) -> set[str]:
        try:
            return {unquote(path.name) for path in self._directory.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise TransientEngineError(f"{self._directory} cannot be read: {error}") from error

    async def leave(self, controller: str) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path(controller).touch(mode=0o600)
        except OSError as error:
            raise TransientEngineError(f"{self._directory} cannot be written to: {error}") from error

    async def remove(self, controller: str) -> None:
        try:
            self._path(controller).unlink(missing_ok=True)
        except OSError as error:
            raise TransientEngineError(f"{self._directory} cannot be written to: {error}") from error

    def _path(self, controller: str) -> Path:
        return self._directory / quote(controller, safe="")
