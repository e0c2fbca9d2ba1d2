"""What images are built from is the commit's alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.image_context import SOURCES, stage

ROOT = Path(__file__).parents[2]
IMAGES = sorted(SOURCES)
LITTER = [
    *(".git/x.py", "controller/.venv/x.py", "controller/.#app.py", "controller/__pycache__/app.cpython-311.pyc"),
    *(
        "controller/app.py~",
        "controller/db/sql/#queue.sql#",
        "images/sandbox/gitconfig.orig",
        "images/app/.Dockerfile.swp",
    ),
]
Found = dict[str, tuple[int, bytes]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources, as this checkout has them."""
    for part in ("images", "controller"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements-app.lock", tmp_path)
    return tmp_path


@pytest.fixture
def umask() -> Iterator[None]:
    """This process's, put back afterwards."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def found(context: Path) -> Found:
    """Path, mode and bytes of all that a build gets; no bytes of a directory."""
    return {
        str(path.relative_to(context)): (path.lstat().st_mode, b"" if path.is_dir() else path.read_bytes())
        for path in context.rglob("*")
    }


def files(checkout: Path) -> list[Path]:
    return [path for part in ("images", "controller") for path in (checkout / part).rglob("*") if path.is_file()]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
def test_umask_line_ends_and_litter_of_a_checkout_change_nothing(image: str, mask: int, checkout: Path) -> None:
    expected = found(stage(image, ROOT))
    os.umask(mask)
    for path in files(checkout):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        path.chmod(0o777 & ~mask)
    for name in LITTER:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("x")
    assert found(stage(image, checkout)) == expected
    assert {mode & 0o777 for mode, _ in expected.values()} <= {0o644, 0o755}


def test_a_context_follows_its_sources_and_what_is_right_in_it_is_not_touched(checkout: Path) -> None:
    context = stage("app", checkout)
    (context / "controller" / "litter").mkdir()
    (context / "controller" / "litter" / "x.py").write_text("")
    (context / "controller" / "protocol" / "model.py").chmod(0o600)
    (checkout / "controller" / "app.py").write_text("changed")
    (checkout / "controller" / "new.py").write_text("new")
    shutil.rmtree(checkout / "controller" / "requester")
    before = {path: path.stat().st_ino for path in context.rglob("*") if path.is_file()}
    stage("app", checkout)
    assert (context / "controller" / "app.py").read_text() == "changed"
    assert (context / "controller" / "new.py").read_text() == "new"
    assert not (context / "controller" / "requester").exists()
    assert not (context / "controller" / "litter").exists()
    touched = {path.name for path, inode in before.items() if path.exists() and path.stat().st_ino != inode}
    assert touched == {"app.py", "model.py"}


def test_every_file_of_the_controller_is_in_its_image() -> None:
    there = {path.relative_to(ROOT) for path in (ROOT / "controller").rglob("*") if path.is_file()}
    sources = {str(path) for path in there if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    assert sources <= set(found(stage("app", ROOT))), "its kind is missing in SOURCES"


@pytest.mark.parametrize("image", IMAGES)
def test_all_that_a_dockerfile_copies_is_in_its_context(image: str) -> None:
    context = stage(image, ROOT)
    lines = [line.split() for line in (context / "Dockerfile").read_text().splitlines()]
    copied = [line[1] for line in lines if line[:1] == ["COPY"] and not line[1].startswith("--from")]
    assert copied
    assert [name for name in copied if not (context / name).exists()] == []


def test_a_source_that_is_missing_is_named(checkout: Path) -> None:
    (checkout / "images" / "sandbox" / "gitconfig").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*/images/sandbox/gitconfig"):
        stage("sandbox", checkout)
