"""All SQL of the project, in files; each named block is one statement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import LiteralString, cast


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema; `min_code_version` is the oldest controller that may run after it."""

    version: int
    name: str
    sql: LiteralString
    min_code_version: int


def statements(file: str) -> dict[str, LiteralString]:
    """The named statements of `sql/<file>`: each begins with a line `-- name --`.

    A fragment begins with a line `-- $name --` and ends at an empty one; statements have `$name` in its place.
    """
    text = _read(file)
    for name, fragment in re.findall(r"^-- (\$\w+) --\n((?:.+\n)+)", text, flags=re.MULTILINE):
        text = text.replace(name, fragment.strip())
    blocks = re.split(r"^-- (\w+) --$", text, flags=re.MULTILINE)
    return {name: cast(LiteralString, body.strip()) for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


def migrations() -> list[Migration]:
    """Every migration in order. A first line `-- min_code_version: N` shuts out controllers older than N."""
    found: list[Migration] = []
    for path in sorted(files(__package__).joinpath("migrations").iterdir(), key=lambda path: path.name):
        named = re.fullmatch(r"(\d{4})_(\w+)\.sql", path.name)
        if named is not None:
            text = path.read_text("utf-8")
            stated = re.match(r"-- min_code_version: (\d+)\n", text)
            oldest = int(stated[1]) if stated else found[-1].min_code_version if found else 1
            found.append(Migration(int(named[1]), named[2], text, oldest))
    return found


def _read(file: str) -> str:
    return files(__package__).joinpath(file).read_text("utf-8")
