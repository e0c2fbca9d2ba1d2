"""Whether the context's user has every right that the stack needs, by access reviews of the API server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from infra.cluster.client import AT_ONCE, ClusterClient
from infra.cluster.rights import Right

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def lacking(cluster: ClusterClient, needed: Sequence[Right]) -> Sequence[Right]:
    """The rights that the user lacks. Raises ClusterError."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        allowed = threads.map(lambda right: _may(cluster, right), needed)
        return [right for right, may in zip(needed, allowed, strict=True) if not may]


def _may(cluster: ClusterClient, right: Right) -> bool:
    kind, _, part = right.kind.partition("/")
    asked = {
        "namespace": right.namespace or "",
        "group": right.group,
        "resource": kind,
        "subresource": part,
        "verb": right.verb,
        "name": right.name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    return bool(cluster.create(REVIEWS, review)["status"]["allowed"])


def in_words(missing: Iterable[Right]) -> Sequence[str]:
    """A line for each namespace: the kinds, and what may not be done with them."""
    places: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for right in missing:
        place = "in the cluster" if right.namespace is None else f"in namespace {right.namespace}"
        kind = f"{right.kind}.{right.group}" if right.group else right.kind
        places[place][f"{kind} {right.name}".strip()].append(right.verb)
    return [
        f"the context's user may not, {place}: "
        + "; ".join(f"{', '.join(verbs)} {kind}" for kind, verbs in kinds.items())
        for place, kinds in places.items()
    ]
