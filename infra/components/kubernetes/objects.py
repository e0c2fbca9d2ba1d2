"""What objects of a cluster have in common: annotations for the provider, and what is read of a created one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pulumi

REVISION = ("namespace", "name", "uid", "generation")  # of a workload's metadata: they change with what it is to be
REPLACE_UNREADY = {"pulumi.com/replaceUnready": "true"}  # an annotation: one that failed is replaced
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}  # an annotation: to be created is enough
# An annotation: to be created is enough, and yet a delete waits for the pods to end, which SKIP_AWAIT would not.
CREATED_IS_ENOUGH = {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}


def name_of(created: Any) -> pulumi.Output[str]:
    """An object's name, known once it is there."""
    found: pulumi.Output[str] = created.metadata.apply(lambda metadata: str(metadata.name))
    return found


def revision_of(created: Any) -> dict[str, Any]:
    """The workload and its revision, in the form that a wait takes."""
    found: dict[str, Any] = {key: created.metadata.apply(partial(_field, key)) for key in REVISION}
    return {"kind": created.kind, **found}


def _field(key: str, metadata: Any) -> Any:
    return getattr(metadata, key)
