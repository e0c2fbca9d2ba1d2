"""Kubeconfigs of one cluster."""

from __future__ import annotations

from typing import Any


def kubeconfig(
    name: str, cluster: dict[str, Any], token: str, *, namespace: str | None = None, current: bool = True
) -> dict[str, Any]:
    """One cluster, one login and their context, all under this name; `current` false: no context is in use."""
    context = {"cluster": name, "user": name} | ({"namespace": namespace} if namespace else {})
    return {
        "apiVersion": "v1",
        "kind": "Config",
        **({"current-context": name} if current else {}),
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": context}],
    }
