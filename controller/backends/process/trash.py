"""Removes directory trees of ended runs, whatever their commands created there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PASSES = 3


def empty_trash(trash: Path, names: Iterable[str]) -> None:
    """Removes these trees in the trash.

    A nested directory is first moved up beside its parent, so that depth needs neither recursion nor a long path.
    """
    waiting = list(names)
    root = os.open(trash, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while waiting:
            name = waiting.pop()
            with suppress(OSError):  # what cannot be removed stays in the trash
                for _ in range(PASSES):
                    waiting += _flatten(root, name)
                    with suppress(OSError):
                        os.rmdir(name, dir_fd=root)
                        break
    finally:
        os.close(root)


def _flatten(root: int, name: str) -> list[str]:
    """Empties one directory of the trash; returns the names in the trash of the directories that were in it."""
    moved: list[str] = []
    os.chmod(name, 0o700, dir_fd=root)
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=directory)
                        continue
                    os.chmod(entry.name, 0o700, dir_fd=directory)
                    moved.append(uuid.uuid4().hex)
                    os.rename(entry.name, moved[-1], src_dir_fd=directory, dst_dir_fd=root)
    finally:
        os.close(directory)
    return moved
