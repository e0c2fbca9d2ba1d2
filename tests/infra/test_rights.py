"""What the preflight asks for and what the program makes are the same."""

from __future__ import annotations

import pulumi

from infra.cluster.rights import KEPT, rules
from infra.config import Config
from tests.support.mocked_stack import Deploy, cluster_objects, configure, kind_of

GIVEN = {"createNamespaces": False, "createLimits": True}


def test_rights_to_make_are_asked_for_each_kind_in_the_namespace_where_it_is_made_and_for_no_other(
    prod: Deploy,
) -> None:
    keys = {**GIVEN, "requesterNamespaces": ["apps"]}
    kinds = {(inputs["metadata"]["namespace"], *kind_of(kind)[::2]) for kind, inputs in cluster_objects(prod(**keys))}
    configure({"target": "kubernetes", "registry": "registry.example/team", **keys}, "prod", ())
    read = Config.read()
    pulumi.runtime.reset_options()
    asked = {(rule.namespace, rule.group, kind) for rule in rules(read) for kind in rule.kinds if rule.verbs == KEPT}
    assert kinds == asked
