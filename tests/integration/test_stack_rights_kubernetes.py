"""What the document's Roles allow on a real cluster is what the program makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config

from tests.support.deployer import deployer
from tests.support.documented_roles import documented_roles
from tests.support.engines import need_cluster
from tests.support.mocked_stack import ROOT, Deploy, cluster_objects, deploying, kind_of, on_kubernetes

SPACES = {"ci-fixer-sandbox-prod": "namespace", "ci-fixer-sandbox-prod-sandboxes": "sandboxNamespace"}
GIVEN = {"createNamespaces": False, "createLimits": True}


@pytest.fixture
def prod(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """The stack on Kubernetes under mocks, with these keys."""
    with deploying(monkeypatch) as deploy:
        yield on_kubernetes(deploy)


def test_a_login_with_the_documents_roles_makes_everything_that_the_program_makes(prod: Deploy) -> None:
    need_cluster()
    with deployer() as who:
        spaces = dict(zip(SPACES, (who.app, who.boxes), strict=True))
        for role in documented_roles(ROOT / "docs" / "stacks.md")[False]:
            place = role["metadata"].get("namespace")
            who.may(role["rules"], spaces[place] if place else None)
        given = {key: spaces[name] for name, key in SPACES.items()}
        recorded = cluster_objects(prod(**GIVEN, **given))
        api = config.new_client_from_config_dict(who.kubeconfig_object())
        refused: list[str] = []
        for token, inputs in recorded:
            group, version, plural = kind_of(token)
            head = f"/apis/{group}/{version}" if group else f"/api/{version}"
            metadata = dict(inputs["metadata"])
            if "name" not in metadata or metadata["name"].endswith("-1234567"):
                metadata["name"] = "named-by-the-provider"
            body = {**inputs, "metadata": metadata, "apiVersion": f"{group}/{version}".lstrip("/")}
            dry = "" if plural == "roles" else "?dryRun=All"  # the binding of a Role needs it
            if plural == "rolebindings":
                body["roleRef"] = {**inputs["roleRef"], "name": "ci-fixer-sandbox-prod"}
            answer = post(api, f"{head}/namespaces/{metadata['namespace']}/{plural}{dry}", body)
            if answer[0] != 201:
                refused.append(f"{plural}: {answer[1]}")
        assert refused == []


def post(api: client.ApiClient, path: str, body: Any) -> tuple[int, str]:
    """The answer's status and text."""
    headers = {"Content-Type": "application/json"}
    sent = api.param_serialize("POST", path, header_params=headers, body=body, auth_settings=["BearerToken"])
    response = api.call_api(*sent, _request_timeout=10)
    return int(response.status), response.read().decode()
