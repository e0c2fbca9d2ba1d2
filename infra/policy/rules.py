"""Every rule, as the tests and the policy pack apply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.policy.access import (
    account_tokens,
    exact_network_rules,
    inner_services,
    least_rights,
    narrow_bindings,
    no_wildcards,
    secured_namespaces,
)
from infra.policy.containers import bounded_containers, checked_containers, loopback_ports, unprivileged_containers
from infra.policy.images import exact_images, pinned_images
from infra.policy.pods import no_host_access, probes, read_only_root, resource_limits, restricted_pods, service_links
from infra.policy.secret_values import plain_secrets

Rule = Callable[[str, Mapping[str, Any]], list[str]]

RULES: tuple[Rule, ...] = (
    restricted_pods,
    read_only_root,
    resource_limits,
    no_host_access,
    probes,
    service_links,
    pinned_images,
    exact_images,
    no_wildcards,
    least_rights,
    narrow_bindings,
    account_tokens,
    secured_namespaces,
    inner_services,
    exact_network_rules,
    loopback_ports,
    unprivileged_containers,
    bounded_containers,
    checked_containers,
    plain_secrets,
)


def violations(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """What every rule has against a resource of this type token, with these properties as the engine sends them."""
    return [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(kind, properties)]
