"""How a configuration key is declared: once, as a field of `Config`.

The parser reads the declarations. The schema in Pulumi.yaml and the table in docs/stacks.md are written from them by
`python -m infra.config.document`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import pulumi

from infra.config import values

T = TypeVar("T")
Target = Literal["both", "docker", "kubernetes"]
Default = str | int | bool
METADATA = "key"  # of a dataclass field


@dataclass(frozen=True)
class Key:
    """One key. `check` returns the value of a text, or raises ValueError with what the key takes.

    `default` is the schema's; a key without one has the value `absent` if it is not given, and `shown` says in the
    document what that means. The first sentence of `description` (Markdown) is the schema's.
    """

    name: str
    of: Target
    check: Callable[[str], Any]
    absent: Any
    description: str
    default: Default | None = None
    shown: str = ""
    secret: bool = False
    required: bool = False


def key(name: str, check: Callable[[str], T], *, of: Target, default: Default, description: str) -> T:
    """A field whose key has a default in the schema."""
    absent = check(written(default))
    found: T = _field(Key(name, of, check, absent, description, default, f"`{written(default)}`"))
    return found


def key_without_default(
    name: str, check: Callable[[str], T], *, of: Target, absent: T, shown: str, description: str
) -> T:
    """A field whose key is read only if it is given; it is not in the schema, which would require it of every stack."""
    found: T = _field(Key(name, of, check, absent, description, shown=shown))
    return found


def required_key(name: str, check: Callable[[str], str], *, description: str) -> str:
    """A field whose key every stack has to give; empty if it does not."""
    required: str = _field(Key(name, "both", check, "", description, shown="required", required=True))
    return required


def secret_key(
    name: str, check: Callable[[str], str] = values.text, *, of: Target, shown: str, description: str
) -> pulumi.Output[str] | None:
    """A field whose key is refused in clear, and whose value is a secret output."""
    found: pulumi.Output[str] | None = _field(Key(name, of, check, None, description, shown=shown, secret=True))
    return found


def _field(declared: Key) -> Any:
    return field(metadata={METADATA: declared})


def declared_keys(config: type) -> Sequence[tuple[str, Key]]:
    """The fields that are keys, by the field's name, in the order of the class."""
    return [(one.name, one.metadata[METADATA]) for one in fields(config) if METADATA in one.metadata]


def written(value: Any) -> str:
    """A value as the engine hands it to the program."""
    return value if isinstance(value, str) else json.dumps(value)
