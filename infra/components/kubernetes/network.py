"""NetworkPolicies: default deny in both namespaces, plus the exceptions below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, ip_network

import pulumi
import pulumi_kubernetes as k8s
from pulumi_kubernetes.meta.v1 import LabelSelectorArgs
from pulumi_kubernetes.networking.v1 import (
    IPBlockArgs,
    NetworkPolicyEgressRuleArgs,
    NetworkPolicyIngressRuleArgs,
    NetworkPolicyPeerArgs,
    NetworkPolicyPortArgs,
    NetworkPolicySpecArgs,
)

from infra.cluster.naming import CONTROLLER, DATABASE, MIGRATION, Naming
from infra.components.database_urls import PORT
from infra.components.images import HTTP_PORT
from infra.components.kubernetes.objects import metadata, selector
from infra.config.values import RESOLVER
from infra.ending.kubernetes import KubernetesEnd
from infra.hooks import bound_to

# Left out of a wider range that holds them: the cluster's own networks, the neighbours', a cloud's metadata service.
INTERNAL_IPV4 = (
    *("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("198.18.0.0/15", "240.0.0.0/4"),  # which some clusters use as theirs
    *("168.63.129.16/32", "192.0.0.0/24"),  # Azure's and Oracle's hosts
)
NAT64, NAT64_PRIVATE = IPv6Address("64:ff9b::"), "64:ff9b:1::/48"  # IPv4 as IPv6 networks see it (RFC 6052, RFC 8215)
INTERNAL = (
    *INTERNAL_IPV4,
    *("fc00::/7", "fe80::/10"),
    *(f"{NAT64 + int(one.network_address)}/{96 + one.prefixlen}" for one in map(IPv4Network, INTERNAL_IPV4)),
    NAT64_PRIVATE,
)
DNS_PORTS = (("UDP", 53), ("TCP", 53))
API_SERVER_PORTS = (443, 6443)
NAMESPACE_NAME = "kubernetes.io/metadata.name"  # a label of every namespace


@dataclass(frozen=True)
class NetworkArgs:
    """`database_cidrs` are those of an existing database; empty if the database is in the cluster."""

    naming: Naming
    namespace: pulumi.Input[str]
    sandbox_namespace: pulumi.Input[str]
    requester_namespaces: Sequence[str]
    monitoring_namespace: str | None
    api_server_cidrs: Sequence[str]
    egress_cidrs: Sequence[str]
    database_cidrs: Sequence[str]
    database_port: pulumi.Input[int]
    end: KubernetesEnd


class Network(pulumi.ComponentResource):
    """The policies of both namespaces."""

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Network", name, None, opts)
        self._args = args
        naming = args.naming
        # Also if sandboxes get another namespace, and this one stays: no sandbox may outlive its policy.
        emptied = bound_to(pulumi.ResourceHook("without-sandboxes", args.end.empty))
        self._policy("sandboxes-deny-all", args.sandbox_namespace, {}, opts=emptied)
        outside = _to_outside(args.egress_cidrs)
        self._policy("sandboxes-egress", args.sandbox_namespace, {"network": "egress"}, egress=outside)
        self._policy("app-deny-all", args.namespace, {})
        dns = NetworkPolicyEgressRuleArgs(ports=_ports(*DNS_PORTS))  # of any address: it may be the node's own
        out = [dns, self._to_database()]
        self._policy("migration", args.namespace, naming.selector(MIGRATION), egress=out)
        callers = _namespaces([*args.requester_namespaces, *filter(None, [args.monitoring_namespace])])
        self._policy(
            "controller",
            args.namespace,
            naming.selector(CONTROLLER),
            ingress=[_from(callers, HTTP_PORT)] if callers else [],
            egress=[*out, *self._to_api_server()],
        )
        if not args.database_cidrs:
            clients = [*map(self._pods, (CONTROLLER, MIGRATION)), *_namespaces(args.requester_namespaces)]
            self._policy("database", args.namespace, naming.selector(DATABASE), ingress=[_from(clients, PORT)])
        self.register_outputs({})

    def _pods(self, component: str) -> NetworkPolicyPeerArgs:
        return NetworkPolicyPeerArgs(pod_selector=selector(self._args.naming, component))

    def _to_database(self) -> NetworkPolicyEgressRuleArgs:
        cidrs = self._args.database_cidrs
        to = _blocks(cidrs) if cidrs else [self._pods(DATABASE)]
        return NetworkPolicyEgressRuleArgs(to=to, ports=_ports(("TCP", self._args.database_port)))

    def _to_api_server(self) -> Sequence[NetworkPolicyEgressRuleArgs]:
        cidrs = self._args.api_server_cidrs
        ports = _ports(*(("TCP", port) for port in API_SERVER_PORTS))
        return [NetworkPolicyEgressRuleArgs(to=_blocks(cidrs), ports=ports)] if cidrs else []

    def _policy(
        self,
        name: str,
        namespace: pulumi.Input[str],
        pods: Mapping[str, str],
        *,
        ingress: Sequence[NetworkPolicyIngressRuleArgs] = (),
        egress: Sequence[NetworkPolicyEgressRuleArgs] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Creates a policy for both directions: one without a rule is closed."""
        naming = self._args.naming
        k8s.networking.v1.NetworkPolicy(
            name,
            metadata=metadata(naming, "network", namespace, f"{naming.name}-{name}"),
            spec=NetworkPolicySpecArgs(
                pod_selector=LabelSelectorArgs(match_labels=pods or None),
                policy_types=["Ingress", "Egress"],
                ingress=list(ingress),
                egress=list(egress),
            ),
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(parent=self)),
        )


def _ports(*pairs: tuple[str, pulumi.Input[int]]) -> Sequence[NetworkPolicyPortArgs]:
    """Ports, from pairs of protocol and number."""
    return [NetworkPolicyPortArgs(protocol=protocol, port=port) for protocol, port in pairs]


def _from(peers: Sequence[NetworkPolicyPeerArgs], port: int) -> NetworkPolicyIngressRuleArgs:
    return NetworkPolicyIngressRuleArgs(from_=peers, ports=_ports(("TCP", port)))


def _blocks(cidrs: Sequence[str]) -> Sequence[NetworkPolicyPeerArgs]:
    """Peers in these ranges."""
    return [NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr=cidr)) for cidr in cidrs]


def _to_outside(reached: Sequence[str]) -> Sequence[NetworkPolicyEgressRuleArgs]:
    """Rules to these ranges and, if it is among them, to the resolver."""
    cidrs = [one for one in reached if one != RESOLVER]
    rules = [NetworkPolicyEgressRuleArgs(to=[_outside(cidr) for cidr in cidrs])] if cidrs else []
    if RESOLVER in reached:
        rules.append(NetworkPolicyEgressRuleArgs(to=_resolvers(), ports=_ports(*DNS_PORTS)))
    return rules


def _outside(cidr: str) -> NetworkPolicyPeerArgs:
    """Peers in this range, without the internal networks inside it. An internal network that is named itself counts."""
    left_out = [one for one in INTERNAL if one != cidr and _holds(cidr, one)]
    return NetworkPolicyPeerArgs(ip_block=IPBlockArgs(cidr=cidr, except_=left_out or None))


def _resolvers() -> Sequence[NetworkPolicyPeerArgs]:
    """The cluster's resolver, and its copy on each node (kubernetes.io, Using NodeLocal DNSCache)."""
    return [
        NetworkPolicyPeerArgs(
            namespace_selector=LabelSelectorArgs(match_labels={NAMESPACE_NAME: "kube-system"}),
            pod_selector=LabelSelectorArgs(match_labels={"k8s-app": "kube-dns"}),
        ),
        *_blocks(["169.254.20.10/32"]),
    ]


def _holds(wide: str, narrow: str) -> bool:
    one, other = ip_network(wide), ip_network(narrow)
    return one.version == other.version and other.subnet_of(one)  # type: ignore[arg-type]


def _namespaces(names: Sequence[str]) -> Sequence[NetworkPolicyPeerArgs]:
    """Peers in these namespaces."""
    return [
        NetworkPolicyPeerArgs(namespace_selector=LabelSelectorArgs(match_labels={NAMESPACE_NAME: name}))
        for name in names
    ]
