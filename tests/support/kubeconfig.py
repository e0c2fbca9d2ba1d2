"""Kubeconfigs of one cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


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


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> None:
    """Writes it, and makes it the one that is taken."""
    file.write_text(text)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
