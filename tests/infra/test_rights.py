"""What the document's Roles allow, what the preflight asks for and what the program makes are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from kubernetes import client, config

from infra.cluster.rights import KEPT, rules
from infra.config import Config
from infra.policy.wire import unwrapped
from tests.infra.conftest import ROOT, Deploy, Recorded, configure
from tests.support.deployer import deployer, documented_roles
from tests.support.engines import need_cluster

SPACES = {"ci-fixer-sandbox-prod": "namespace", "ci-fixer-sandbox-prod-sandboxes": "sandboxNamespace"}
GIVEN = {"createNamespaces": False, "createLimits": True}


def kind_of(token: str) -> tuple[str, str, str]:
    """Group, version and plural of `kubernetes:apps/v1:Deployment`."""
    _, version, kind = token.split(":")
    group, _, version = version.rpartition("/")
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    return group if group != "core" else "", version, plural


def made(recorded: Recorded) -> list[tuple[str, Mapping[str, Any]]]:
    """Type and inputs of each object of the cluster, secrets in clear."""
    found = [(kind, whole(unwrapped(inputs))) for kind, _, inputs in recorded.all() if kind.startswith("kubernetes:")]
    assert len(found) > 20
    return found


def whole(value: Any) -> Any:
    """With whole numbers as such: the engine's have no kinds."""
    match value:
        case dict():
            return {key: whole(one) for key, one in value.items()}
        case list():
            return [whole(one) for one in value]
        case float() if value.is_integer():
            return int(value)
    return value


def test_rights_to_make_are_asked_for_each_kind_in_the_namespace_where_it_is_made_and_for_no_other(
    prod: Deploy,
) -> None:
    keys = {**GIVEN, "requesterNamespaces": ["apps"]}
    kinds = {(inputs["metadata"]["namespace"], *kind_of(kind)[::2]) for kind, inputs in made(prod(**keys))}
    configure({"target": "kubernetes", "registry": "registry.example/team", **keys}, "prod", ())
    read = Config.read()
    pulumi.runtime.reset_options()
    asked = {(rule.namespace, rule.group, kind) for rule in rules(read) for kind in rule.kinds if rule.verbs == KEPT}
    assert kinds == asked


def test_a_login_with_the_documents_roles_makes_everything_that_the_program_makes(prod: Deploy) -> None:
    need_cluster()
    with deployer() as who:
        spaces = dict(zip(SPACES, (who.app, who.boxes), strict=True))
        for role in documented_roles(ROOT / "docs" / "stacks.md")[False]:
            place = role["metadata"].get("namespace")
            who.may(role["rules"], spaces[place] if place else None)
        given = {key: spaces[name] for name, key in SPACES.items()}
        recorded = made(prod(**GIVEN, **given))
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
