"""Patches of the two kinds that the pretended API server takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any

from tests.support.fake_kubernetes.store import Object

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "conditions": "type",
        "containers": "name",
        "env": "name",
        "ownerReferences": "uid",
        "schedulingGates": "name",
        "volumes": "name",
    }
)  # what tells the elements of a list apart; other lists are replaced
PRIMITIVE = "$deleteFromPrimitiveList/"
SETS = frozenset({"finalizers"})  # lists of words, to which a strategic patch adds


def patched(found: Any, patch: Any, *, strategic: bool) -> Any:
    """What a patch makes of a value (RFC 7386, or Kubernetes' own way with lists)."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    made: Object = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if strategic and key.startswith(PRIMITIVE):
            name = key.removeprefix(PRIMITIVE)
            made[name] = [one for one in made.get(name) or () if one not in value]
        elif value is None:
            made.pop(key, None)
        elif strategic and isinstance(value, list) and key in KEYS:
            made[key] = _merged(made.get(key) or (), value, KEYS[key])
        elif strategic and isinstance(value, list) and key in SETS:
            made[key] = list(dict.fromkeys([*(made.get(key) or ()), *value]))
        else:
            made[key] = patched(made.get(key), value, strategic=strategic)
    return made


def _merged(found: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    made = {one[key]: one for one in found}
    for one in patch:
        how = one.get("$patch")
        if how == "replace":
            made.clear()
        elif how == "delete":
            made.pop(one[key], None)
        else:
            made[one[key]] = patched(made.get(one[key]), one, strategic=True)
    return list(made.values())
