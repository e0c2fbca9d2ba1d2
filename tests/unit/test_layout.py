"""The controller stays small enough to be read in an hour. Which part may import which stands in pyproject.toml."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import controller

ROOT = Path(controller.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
FOR_PEOPLE = ("__main__.py", "requester", "demo", "drain.py", "give_up.py", "terminal.py", "image_context.py")
THIN = [path for path in MODULES if path.relative_to(ROOT).parts[0] not in ("backends", *FOR_PEOPLE)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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
    assert sum(code_lines(path) for path in THIN) < 3050


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_one_module_makes_every_connection() -> None:
    calls = ("Connection.connect(", "Connection[DictRow].connect(", "psycopg.connect(", "ConnectionPool(")
    assert {name(path) for path in MODULES if any(call in path.read_text() for call in calls)} == {"db/pool.py"}


def assigned_attributes(path: Path) -> list[ast.Attribute]:
    """Every attribute that a module assigns or deletes."""
    stores = (ast.Store, ast.Del)
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, stores)]


@pytest.mark.parametrize("path", sorted((ROOT / "reconcile").glob("*.py")), ids=name)
def test_what_is_tracked_is_changed_by_its_own_methods_alone(path: Path) -> None:
    foreign = [node for node in assigned_attributes(path) if ast.unparse(node.value) != "self"]
    assert not [f"{path.name}:{node.lineno} assigns {ast.unparse(node)}" for node in foreign]
    assert "setattr(" not in path.read_text()
