"""What images are built from: the same files, bytes and modes, whatever a checkout's umask, line ends and litter."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# Of each image: a directory of the checkout, and what of it goes into the context under the same name.
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
    """A directory that holds what the image is built from, and nothing else. Raises OSError where the checkout lacks a
    file, or one cannot be read or written."""
    wanted, context = _contents(image, checkout), checkout / PLACE / image
    directories = {context / parent for path in wanted for parent in path.parents}
    for path in sorted(context.rglob("*"), reverse=True):
        with suppress(FileNotFoundError):  # another build has just done it
            if path.is_dir() and not path.is_symlink():
                if path not in directories:
                    path.rmdir()
            elif path.relative_to(context) not in wanted:
                path.unlink()
    for directory in sorted(directories):
        directory.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) != DIRECTORY:  # another user's may be right as it is
            directory.chmod(DIRECTORY)
    for path, content in wanted.items():
        _write(context / path, content, context.parent)
    return context


def _contents(image: str, checkout: Path) -> dict[Path, bytes]:
    """Hidden files are an editor's or a tool's. Every file is text: with the line ends of the repository it is the same
    as in any other checkout."""
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
    """Where it is not so already, and at once: another build may be reading the context."""
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
