"""What a change of the configuration means for a stack that is up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.config import Config
from infra.config.values import postgres_major

Remembered = Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """`faults` stop the change; `warnings` are only reported."""

    faults: Sequence[str] = ()
    warnings: Sequence[str] = ()


def whereabouts(config: Config) -> Mapping[str, str]:
    """The keys that say where the stack and its sandboxes are. A destroy after a change of one would end others."""
    found = {"name": config.name, "target": config.target}
    if config.target == "docker":
        return {**found, "dockerSocket": config.docker_socket or ""}
    return {**found, "namespace": config.namespace, "sandboxNamespace": config.sandbox_namespace}


def remembered(config: Config) -> Remembered:
    """What the state keeps of a configuration, to notice a change. Secrets stay secret; a missing value is empty."""
    kept: dict[str, Any] = {
        **whereabouts(config),
        "databasePassword": config.database_password,
        "postgresMajor": postgres_major(config.postgres_image),
    }
    if config.target != "docker":
        kept |= {"databaseUrl": config.database_url}
    return {key: "" if value is None else value for key, value in kept.items()}


def meaning(config: Config, before: Remembered, after: Remembered) -> Meaning:
    """The meaning of a change from one to the other, both in clear. A key that was not remembered has not changed."""
    changed = {key: (was, after[key]) for key, was in before.items() if key in after and after[key] != was}
    if "target" in changed:
        was, now = changed["target"]
        words = f"cannot become {now}: stack {config.stack} is up on {was}, with its database; create another stack"
        return Meaning([f"{config.project}:target {words}, or destroy this one first, with its former target"])
    if "name" in changed:
        was, now = changed["name"]
        words = (
            f"the project or the stack was renamed: every object is called {was}, and would be created again as {now}"
        )
        return Meaning([f"{words}, the database with nothing in it: rename it back (pulumi stack rename)"])
    own = not before.get("databaseUrl") and not after.get("databaseUrl")
    return Meaning(
        [f"{config.project}:{words}" for words in (_faults(config, changed) if own else ())],
        [f"{config.project}:{words}" for words in _warnings(changed, own)],
    )


def _faults(config: Config, changed: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    was, now = changed.get("postgresMajor", ("", ""))
    if was and now and int(was) < int(now):  # back to the one before is the way out of a mistake
        yield (
            f"postgresImage is {config.postgres_image}, and the database has the files of Postgres {was:.0f}, which"
            f" Postgres {now:.0f} cannot read: keep the major version; to change it, dump the rows and restore them in"
            " a new stack"
        )


def _warnings(changed: Mapping[str, tuple[Any, Any]], own: bool) -> Iterator[str]:
    if "namespace" in changed:
        was, now = changed["namespace"]
        lost = (
            "the database in it is deleted with its rows, and an empty one is created"
            if own
            else "nothing else is lost"
        )
        yield f"namespace changes from {was} to {now}: everything that the stack has in {was} is deleted; {lost}"
    if "sandboxNamespace" in changed:
        was, now = changed["sandboxNamespace"]
        words = f"sandboxes that run in {was} cannot be followed; `drain` first"
        yield f"sandboxNamespace changes from {was} to {now}: {words}"
    if "dockerSocket" in changed:
        yield "dockerSocket changes: sandboxes that run cannot be followed; `drain` first"
    if "databasePassword" in changed and own:
        yield (
            "databasePassword changes only the clients. First run `alter role postgres password '…'` in the database,"
            " or no login will work"
        )
    match changed.get("databaseUrl"):
        case ("", _):
            yield "databaseUrl is set: the stack's own database is deleted with its rows"
        case (_, ""):
            yield "databaseUrl is removed: the stack creates an empty database, and the rows stay in the other"
        case (_, _):
            yield "databaseUrl changes: rows that are in the former database stay there; `drain` first"
