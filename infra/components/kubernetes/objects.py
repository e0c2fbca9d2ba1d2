"""What objects of a cluster have in common: metadata, annotations for the provider, what is read of a created one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pulumi
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs, ObjectMetaArgs

from infra.cluster.naming import Naming

REVISION = ("namespace", "name", "uid", "generation")  # of a workload's metadata: they change with what it is to be
REPLACE_UNREADY = {"pulumi.com/replaceUnready": "true"}  # an annotation: one that failed is replaced
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}  # an annotation: to be created is enough
# An annotation: to be created is enough, and yet a delete waits for the pods to end, which SKIP_AWAIT would not.
CREATED_IS_ENOUGH = {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}


def metadata(
    naming: Naming,
    component: str,
    namespace: pulumi.Input[str],
    name: str | None = None,
    annotations: Mapping[str, pulumi.Input[str]] | None = None,
) -> ObjectMetaArgs:
    """An object's metadata. Without a name Pulumi generates one, and another one for each replacement."""
    return ObjectMetaArgs(name=name, namespace=namespace, labels=naming.labels(component), annotations=annotations)


def selector(naming: Naming, component: str) -> LabelSelectorArgs:
    """What selects a component's pods."""
    return LabelSelectorArgs(match_labels=naming.selector(component))


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


def as_json(args: Any) -> pulumi.Output[Any]:
    """Typed arguments as the API server takes them, for an object that is not created by the provider."""
    return pulumi.Output.from_input(_plain(args))


def _plain(value: Any) -> Any:
    match value:
        case None | str() | int() | float() | pulumi.Output():
            return value
        case Mapping():
            return {key: _plain(one) for key, one in value.items()}
        case Sequence():
            return [_plain(one) for one in value]
        case _:  # typed arguments: their fields, by the names that Python has for them
            return {_camel_case(key): _plain(one) for key, one in vars(value).items()}


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
