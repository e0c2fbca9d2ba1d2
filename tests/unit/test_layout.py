"""The controller stays small enough to be read in an hour, and each part keeps to what it may touch."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import controller

ROOT = Path(controller.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
FOR_PEOPLE = (
    "__main__.py",
    "requester",
    "demo",
    "drain.py",
    "terminal.py",
    "image_context.py",
)  # who ask
THIN = [path for path in MODULES if path.relative_to(ROOT).parts[0] not in ("backends", *FOR_PEOPLE)]
ENGINES = {"aiodocker", "docker", "kubernetes"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
    return found


def code_lines(path: Path) -> int:
    """Lines that hold more than blanks, comments and docstrings."""
    source = path.read_text()
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            held -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(held)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_under_350_lines(path: Path) -> None:  # one thing each: an adapter of every verb needs as many
    assert len(path.read_text().splitlines()) < 350


def test_the_thin_controller_stays_thin() -> None:
    assert sum(code_lines(path) for path in THIN) < 2900


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_only_the_queue_touches_postgres() -> None:
    found = {name(path) for path in MODULES if any(one.split(".")[0].startswith("psycopg") for one in imports(path))}
    assert all(one.startswith(("db/", "requester/")) for one in found)


def test_one_module_makes_every_connection() -> None:
    calls = ("Connection.connect(", "Connection[DictRow].connect(", "psycopg.connect(", "ConnectionPool(")
    assert {name(path) for path in MODULES if any(call in path.read_text() for call in calls)} == {"db/pool.py"}


def test_only_a_backend_touches_its_engine() -> None:
    found = {name(path) for path in MODULES if ENGINES & {one.split(".")[0] for one in imports(path)}}
    assert all(one.startswith("backends/") for one in found)


def test_only_the_composition_root_wires() -> None:
    backends = {f"controller.{name(path)[:-3].replace('/', '.')}" for path in (ROOT / "backends").rglob("*.py")} - {
        "controller.backends.base"
    }
    for path in THIN:
        if name(path) != "app.py":
            assert not imports(path) & backends, name(path)
            assert "controller.settings" not in imports(path), name(path)


def test_the_pure_parts_import_no_other() -> None:
    for pure, may in {
        "protocol/model.py": set[str](),
        "protocol/decide.py": {"controller.protocol.model"},
        "protocol/text.py": set[str](),
        "errors.py": {"controller.protocol.model"},
    }.items():
        assert {one for one in imports(ROOT / pure) if one.startswith("controller")} <= may, pure
