"""What it means that a key is changed while the stack is up, where that is more than a new value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.config import Config

Remembered = Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """`faults` stop the change; `warnings` are said, and it goes on."""

    faults: Sequence[str] = ()
    warnings: Sequence[str] = ()


def remembered(config: Config) -> Remembered:
    """What is kept of a configuration, to know a change by: nothing that is secret."""
    if config.target == "docker":
        return {"target": config.target}
    return {
        "target": config.target,
        "namespace": config.namespace,
        "sandboxNamespace": config.sandbox_namespace,
        "database": "existing" if config.database_url is not None else "own",
    }


def meaning(project: str, stack: str, before: Remembered, after: Remembered) -> Meaning:
    """Of a change from one to the other."""
    if before.get("target") != after["target"]:
        other = "make another stack for it, or destroy this one first (with the former target)"
        words = f"cannot become {after['target']}: stack {stack} is up on {before.get('target')}, with its database"
        return Meaning([f"{project}:target {words}; {other}"])
    return Meaning(warnings=[f"{project}:{words}" for words in _warnings(stack, before, after)])


def _warnings(stack: str, before: Remembered, after: Remembered) -> Iterator[str]:
    own = before.get("database") == "own"
    if before.get("namespace") != after.get("namespace"):
        lost = "the database in it is deleted with its rows, and an empty one is made" if own else "with all in it"
        words = "the old namespace is left, or deleted where the stack made it"
        yield f"namespace changes from {before.get('namespace')} to {after.get('namespace')}: {words}; {lost}"
    if before.get("sandboxNamespace") != after.get("sandboxNamespace"):
        was = before.get("sandboxNamespace")
        words = f"sandboxes that run in {was} cannot be followed; `drain` first"
        yield f"sandboxNamespace changes from {was} to {after.get('sandboxNamespace')}: {words}"
    if before.get("database") != after.get("database"):
        if own:
            yield "databaseUrl is set: the stack's own database is deleted with its rows"
        else:
            yield "databaseUrl is gone: the stack makes an empty database of its own, and the rows stay in the other"
