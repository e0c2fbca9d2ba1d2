"""Reads a stack's keys one after the other, and collects what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import pulumi
import yaml
from pulumi.runtime.config import CONFIG, is_config_secret

from infra.config import values

T = TypeVar("T")


def schema_defaults() -> dict[str, str]:
    """What Pulumi.yaml gives a stack that says nothing, as the engine hands it to the program."""
    schema = yaml.safe_load((Path(__file__).parents[2] / "Pulumi.yaml").read_text())["config"]
    return {key: written(one["default"]) for key, one in schema.items() if "default" in one}


def written(value: Any) -> str:
    """A value as the engine hands it to the program."""
    return value if isinstance(value, str) else json.dumps(value)


class Reader:
    """`faults`: what is wrong, a line each."""

    def __init__(self, project: str, stack: str) -> None:
        self.project, self.stack = project, stack
        self._defaults = schema_defaults()
        self.faults: list[str] = []
        self.known: set[str] = set()

    def fault(self, key: str, words: str) -> None:
        """Notes what is wrong with a key."""
        self.faults.append(f"{self.project}:{key} {words}")

    def get(self, key: str, check: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        """The checked value; the default where there is none or it is wrong."""
        raw = self._raw(key)
        if raw is None:
            return default
        try:
            return check(raw)
        except ValueError as error:
            self.fault(key, f"{error}" if secret else f"{error}; it is {raw!r}")
            return default

    def secret(self, key: str, check: Callable[[str], str] = values.text) -> pulumi.Output[str] | None:
        """The checked value, secret wherever it goes."""
        found = self.get(key, values.optional(check), None, secret=True)
        if found is not None and not is_config_secret(f"{self.project}:{key}"):
            again = f"pulumi config set --stack {self.stack} --secret {key}"
            self.fault(key, f"stands in clear in the stack's file: take it out there, and set it by {again}")
        return None if found is None else pulumi.Output.secret(found)

    def has(self, key: str) -> bool:
        """Whether the stack gives the key a value: one that is not empty, and not the default."""
        return self._raw(key) not in (None, "", self._defaults.get(key))

    def unknown(self) -> None:
        """Notes keys that nobody asked for."""
        for full in CONFIG.get():
            space, _, key = full.partition(":")
            if space == self.project and key not in self.known:
                near = get_close_matches(key, self.known, n=1)
                self.fault(key, f"is no key of this project; {f'is {near[0]} meant?' if near else 'see Pulumi.yaml'}")
            elif full in ("docker:host", "docker:context"):
                self.faults.append(
                    f"{full} would send the provider to an engine that is not asked: set DOCKER_HOST instead"
                )

    def _raw(self, key: str) -> str | None:
        self.known.add(key)
        found = pulumi.runtime.get_config(f"{self.project}:{key}")
        return None if found is None else written(found)
