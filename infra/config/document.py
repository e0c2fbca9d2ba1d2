"""Writes the schema in Pulumi.yaml and the table in docs/stacks.md from the declarations of the keys.

Run it after a change of a key, in the project's directory: `python -m infra.config.document`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.config import KEYS
from infra.config.keys import Default, Key

SCHEMA, TABLE = Path("Pulumi.yaml"), Path("docs/stacks.md")
SCHEMA_BEGINS = "  # From here on written by `python -m infra.config.document`:\n"
SCHEMA_ENDS = "  # Until here written by it.\n"
TABLE_BEGINS = "| key | of | default | |\n| --- | --- | --- | --- |\n"


def with_schema(text: str, keys: Iterable[Key]) -> str:
    """The text of Pulumi.yaml with the schema of these keys between its two marks. Raises ValueError without them."""
    before, begins, rest = text.partition(SCHEMA_BEGINS)
    _, ends, after = rest.partition(SCHEMA_ENDS)
    if not begins or not ends:
        raise ValueError(f"{SCHEMA} has no lines {SCHEMA_BEGINS.strip()!r} and {SCHEMA_ENDS.strip()!r} after it")
    return before + begins + "".join(f"{line}\n" for key in keys for line in _schema(key)) + ends + after


def with_table(text: str, keys: Iterable[Key]) -> str:
    """The text of docs/stacks.md with the table of these keys."""
    before, begins, rest = text.partition(TABLE_BEGINS)
    if not begins:
        raise ValueError(f"{TABLE} has no table {TABLE_BEGINS.splitlines()[0]!r}")
    rows = "".join(f"| `{key.name}` | {key.of} | {key.shown} | {key.description} |\n" for key in keys)
    return before + begins + rows + "\n" + rest.partition("\n\n")[2]


def _schema(key: Key) -> Iterator[str]:
    """The lines of one key; none if it is not in the schema, which would require it of every stack."""
    if key.default is None and not key.required:
        return
    yield f"  {key.name}:"
    yield f"    type: {_type(key.default)}"
    if key.default is not None:
        yield f"    default: {json.dumps(key.default)}"
    summary = key.description.partition(". ")[0].rstrip(".").replace("`", "")
    target = "" if key.of == "both" else f" (target {key.of})"
    yield f"    description: {json.dumps(f'{summary}{target}.', ensure_ascii=False)}"


def _type(default: Default | None) -> str:
    match default:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case _:
            return "string"


if __name__ == "__main__":
    SCHEMA.write_text(with_schema(SCHEMA.read_text(), KEYS.values()))
    TABLE.write_text(with_table(TABLE.read_text(), KEYS.values()))
