"""How a cluster is reached."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from controller.backends.kubernetes_api import _connect


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    """A cluster at an address where nothing is asked."""
    file = tmp_path / "config"
    cluster = {"server": "https://10.1.2.3:6443", "insecure-skip-tls-verify": True}
    words = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": {"token": "t"}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    file.write_text(json.dumps(words))
    return str(file)


def proxy_for(kubeconfig: str) -> str | None:
    """The proxy that requests go through."""

    async def connect() -> str | None:
        client = await _connect(kubeconfig)
        await client.close()
        found: str | None = client.configuration.proxy
        return found

    return asyncio.run(connect())


@pytest.mark.parametrize(
    ("without", "expected"),
    [("", "http://proxy.example:3128"), ("10.1.2.3", None), ("example.com", "http://proxy.example:3128")],
)
def test_the_proxy_that_the_environment_names_is_used_unless_it_exempts_the_cluster(
    kubeconfig: str, monkeypatch: pytest.MonkeyPatch, without: str, expected: str | None
) -> None:
    for name in ("HTTPS_PROXY", "NO_PROXY"):  # the small ones would win
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", without)
    assert proxy_for(kubeconfig) == expected
