"""Reads the values of a stack's keys, and collects what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime.config import CONFIG, is_config_secret

from infra.config import values
from infra.config.keys import Key, written

SCHEMA = Path(__file__).parents[2] / "Pulumi.yaml"


def schema_defaults(schema: Path = SCHEMA) -> Mapping[str, str]:
    """What Pulumi.yaml gives a stack that sets nothing, as the engine hands it to the program."""
    keys = yaml.safe_load(schema.read_text())["config"]
    return {key: written(one["default"]) for key, one in keys.items() if "default" in one}


class Reader:
    """`faults`: what is wrong, one line each; `refused`: the keys whose value is not what they take.

    `defaults` are the schema's: the engine hands them to the program as if the stack had set them.
    """

    def __init__(self, project: str, stack: str, keys: Iterable[Key], defaults: Mapping[str, str]) -> None:
        self.project, self.stack, self._defaults = project, stack, defaults
        self._keys: Mapping[str, Key] = {key.name: key for key in keys}
        self.faults: list[str] = []
        self.refused: set[str] = set()

    def fault(self, key: str, words: str) -> None:
        """Notes what is wrong with a key."""
        self.faults.append(f"{self.project}:{key} {words}")

    def get(self, key: Key) -> Any:
        """The checked value; the key's own value for an absent one if there is none, or a wrong one."""
        raw = self._raw(key.name)
        if key.required and not raw:
            self.fault(key.name, f"is missing; it {_takes(key)}")
            return key.absent
        if raw is None:
            return key.absent
        try:
            found = (values.optional(key.check) if key.secret else key.check)(raw)
        except ValueError as error:
            self.refused.add(key.name)
            self.fault(key.name, f"{error}" if key.secret else f"{error}; it is {raw!r}")
            return key.absent
        return self._secret(key.name, found) if key.secret else found

    def has(self, key: str) -> bool:
        """Whether the stack gives the key a value: one that is not empty, and not the default."""
        return self._raw(key) not in (None, "", self._defaults.get(key))

    def given(self, keys: Iterable[str]) -> list[str]:
        """The keys, of these, that the stack gives a value."""
        return [key for key in keys if self.has(key)]

    def note_unknown(self) -> None:
        """Notes keys that nothing reads."""
        for full in CONFIG.get():
            space, _, key = full.partition(":")
            if space == self.project and key not in self._keys:
                near = get_close_matches(key, self._keys, n=1)
                self.fault(
                    key, f"is not a key of this project; {f'did you mean {near[0]}?' if near else 'see docs/stacks.md'}"
                )
            elif full in ("docker:host", "docker:context"):
                words = "would send the provider to an engine that the preflight does not check"
                self.faults.append(f"{full} {words}: set DOCKER_HOST instead")

    def _secret(self, key: str, found: str | None) -> pulumi.Output[str] | None:
        """The value, secret wherever it goes; in clear it is a fault."""
        if found is None:
            return None
        if not is_config_secret(f"{self.project}:{key}"):
            again = f"pulumi config set --stack {self.stack} --secret {key}"
            self.fault(key, f"is in plain text in the stack's file: remove it there, and set it with {again}")
        return pulumi.Output.secret(found)

    def _raw(self, key: str) -> str | None:
        found = pulumi.runtime.get_config(f"{self.project}:{key}")
        return None if found is None else written(found)


def _takes(key: Key) -> str:
    """What a key takes, in the words of its check."""
    try:
        key.check("")
    except ValueError as error:
        return str(error)
    return "takes a value"
