"""What a cluster's answers, and those that it does not give, become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from infra.cluster.client import ClusterClient, ClusterError, ForbiddenError, _words
from infra.errors import PreflightError
from infra.preflight.cluster import _client
from tests.support.canned import Canned, canned
from tests.support.kubeconfig import kubeconfig, use_kubeconfig


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    """A cluster of the context `it`."""
    with canned({}) as server:
        found = kubeconfig("it", {"server": server.url}, "t", current=False)
        use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(found))
        yield server


def test_what_is_not_there_is_none_and_nothing_else_is(served: Canned) -> None:
    paths = {"/one": {"metadata": {}}, "/hidden": 403, "/nobody": 401, "/busy": 503, "/page": b"<html>"}
    served.answers |= {f"GET {path}": answer for path, answer in paths.items()}
    cluster = ClusterClient("it")
    assert cluster.get("/one") == {"metadata": {}}
    assert (cluster.get("/none"), cluster.items("/none")) == (None, [])
    with pytest.raises(ForbiddenError):
        cluster.get("/hidden")
    for path, status in (("/nobody", 401), ("/busy", 503), ("/page", 0)):  # a login that is over is no missing right
        with pytest.raises(ClusterError, match="the cluster at http://") as raised:
            cluster.get(path)
        assert (raised.value.status, isinstance(raised.value, ForbiddenError)) == (status, False)


def test_words_of_an_answer_without_json_are_taken_as_they_are() -> None:
    assert _words(b"busy\n") == "busy"
    assert _words(b"") == "an error without a message"


def test_a_token_that_cannot_be_sent_is_told_without_it(
    served: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(kubeconfig("it", {"server": served.url}, "hidden\n", current=False)))
    with pytest.raises(ClusterError, match="token has a line end in it") as raised:
        ClusterClient("it").get("/one")
    assert "hidden" not in str(raised.value)


def test_a_program_that_gives_no_login_is_named_with_what_shows_it(
    served: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.preflight.cluster.ALL_SECONDS", 0.2)
    text = yaml.safe_load((tmp_path / "config").read_text())
    waits = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sleep",
        "args": ["3"],
        "interactiveMode": "Never",
    }
    text["users"] = [{"name": one["name"], "user": {"exec": waits}} for one in text["users"]]
    (tmp_path / "config").write_text(yaml.safe_dump(text))
    with pytest.raises(PreflightError, match=r"context it has no login after 0 s.*kubectl --context it get namespaces"):
        _client("it")
