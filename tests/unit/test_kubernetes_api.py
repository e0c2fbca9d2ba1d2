"""How a cluster is reached."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from controller.backends.kubernetes.api import _connect
from tests.support.kubeconfig import kubeconfig


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A kubeconfig with a cluster at an address where nothing is asked."""
    file = tmp_path / "config"
    cluster = {"server": "https://10.1.2.3:6443", "insecure-skip-tls-verify": True}
    file.write_text(json.dumps(kubeconfig("it", cluster, "t")))
    return str(file)


def proxy_for(config: str) -> str | None:
    """The proxy that requests go through."""

    async def connect() -> str | None:
        client = await _connect(config)
        await client.close()
        found: str | None = client.configuration.proxy
        return found

    return asyncio.run(connect())


@pytest.mark.parametrize(
    ("without", "expected"),
    [("", "http://proxy.example:3128"), ("10.1.2.3", None), ("example.com", "http://proxy.example:3128")],
)
def test_the_proxy_that_the_environment_names_is_used_unless_it_exempts_the_cluster(
    config: str, monkeypatch: pytest.MonkeyPatch, without: str, expected: str | None
) -> None:
    for name in ("HTTPS_PROXY", "NO_PROXY"):  # the small ones would win
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", without)
    assert proxy_for(config) == expected
