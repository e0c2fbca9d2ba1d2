"""Build contexts of images: the same files, bytes and modes, whatever a checkout's umask, line ends and litter."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# By image: a directory of the checkout, and the patterns of its files that go into the context under the same names.
SOURCES = {
    "app": (
        ("images/app", ("Dockerfile",)),
        (".", ("requirements-app.lock", *(f"controller/**/*.{kind}" for kind in ("py", "sql", "sh", "yaml")))),
    ),
    "sandbox": (("images/sandbox", ("Dockerfile", "gitconfig", "requirements.lock")),),
}
PLACE = ".work/images"  # in the checkout, where git ignores it
FILE, DIRECTORY = 0o644, 0o755


def stage(image: str, checkout: Path) -> Path:
    """Prepares the directory that the image is built from, and returns it.

    Raises OSError if the checkout lacks a file, or one cannot be read or written.
    """
    wanted, context = _contents(image, checkout), checkout / PLACE / image
    directories = {context / parent for path in wanted for parent in path.parents}
    for path in sorted(context.rglob("*"), reverse=True):
        with suppress(FileNotFoundError):  # a concurrent build has done it
            if path.is_dir() and not path.is_symlink():
                if path not in directories:
                    path.rmdir()
            elif path.relative_to(context) not in wanted:
                path.unlink()
    for directory in sorted(directories):
        directory.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) != DIRECTORY:  # one of another user can be right already
            directory.chmod(DIRECTORY)
    for path, content in wanted.items():
        _write(context / path, content, context.parent)
    return context


def _contents(image: str, checkout: Path) -> dict[Path, bytes]:
    """The context's files, without hidden ones, which belong to editors and tools.

    Every file is text, and gets the line ends of the repository, so that all checkouts give the same bytes.
    """
    found: dict[Path, bytes] = {}
    for directory, patterns in SOURCES[image]:
        base = checkout / directory
        for pattern in patterns:
            paths = [path.relative_to(base) for path in sorted(base.glob(pattern)) if path.is_file()]
            if not paths:
                raise FileNotFoundError(f"there is no {base / pattern}")
            for path in paths:
                if not any(part.startswith(".") for part in path.parts):
                    found[path] = (base / path).read_bytes().replace(b"\r\n", b"\n")
    return found


def _write(path: Path, content: bytes, beside: Path) -> None:
    """Writes a file atomically, unless it is right already: a concurrent build may be reading it."""
    if (
        path.is_file()
        and not path.is_symlink()
        and stat.S_IMODE(path.stat().st_mode) == FILE
        and path.read_bytes() == content
    ):
        return
    descriptor, written = tempfile.mkstemp(dir=beside)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chmod(written, FILE)
    os.replace(written, path)
