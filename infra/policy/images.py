"""Rules on the images that resources name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.policy.containers import CONTAINER
from infra.policy.pods import containers_of, pod_of
from infra.policy.wire import objects

OURS = "ci-fixer-sandbox"  # in the repository of every image that this project builds
DIGEST = re.compile(r"(^|@)sha256:[0-9a-f]{64}$")
FULL_VERSION = re.compile(r"^v?\d+\.\d+")


def images_of(kind: str, properties: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every image that a resource names, with who uses it."""
    containers = containers_of(pod_of(kind, properties) or {})
    found = {name: container.get("image") for name, container in containers}
    found |= {
        f"{name}'s SANDBOX_IMAGE": one.get("value")
        for name, container in containers
        for one in objects(container, "env")
        if one.get("name") == "SANDBOX_IMAGE"
    }
    if kind == CONTAINER:
        found[f"container {properties.get('name')}"] = properties.get("image")
    return [(name, str(image)) for name, image in found.items() if image]


def tag_of(image: str) -> str | None:
    """An image's tag, None where it has none; a registry's port is no tag."""
    _, colon, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    return tag if colon else None


def pinned_images(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """An image has a digest or a tag other than `latest` (kube-linter latest-tag)."""
    return [
        f"{name}: the image {image} needs a digest or a version's tag"
        for name, image in images_of(kind, properties)
        if not DIGEST.search(image) and tag_of(image) in (None, "latest")
    ]


def exact_images(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """In a cluster our own images go by digest, others by digest or full version (NSA/CISA: image integrity)."""
    if not kind.startswith("kubernetes:"):
        return []
    return [
        f"{name}: the image {image} needs a digest" + ("" if OURS in image else " or a full version's tag, like :15.14")
        for name, image in images_of(kind, properties)
        if not DIGEST.search(image) and (OURS in image or not FULL_VERSION.match(tag_of(image) or ""))
    ]
