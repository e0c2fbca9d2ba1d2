"""Who reaches whom: nobody anybody, but for what stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, ip_network
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, DATABASE, MIGRATION, Naming
from infra.components.database_urls import PORT
from infra.components.images import HTTP_PORT
from infra.config.values import RESOLVER
from infra.ending.kubernetes import KubernetesEnd
from infra.hooks import bound_to

# Not meant by a wider range that holds them: the cluster's own networks, the neighbours', a cloud's metadata service.
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
RESOLVERS = (  # the cluster's, and its copy on each node (kubernetes.io, Using NodeLocal DNSCache)
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    },
    {"ipBlock": {"cidr": "169.254.20.10/32"}},
)
DNS_PORTS = (("UDP", 53), ("TCP", 53))
API_SERVER_PORTS = (443, 6443)
Rule = Mapping[str, Any]


@dataclass(frozen=True)
class NetworkArgs:
    """`database_cidrs` are an existing database's; none: the one in the cluster."""

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
        # Also where sandboxes get another namespace, and this one stays: none of them may outlive it.
        emptied = bound_to(pulumi.ResourceHook("without-sandboxes", args.end.empty))
        self._policy("sandboxes-deny-all", args.sandbox_namespace, {}, opts=emptied)
        egress = _to_outside(args.egress_cidrs)
        self._policy("sandboxes-egress", args.sandbox_namespace, {"network": "egress"}, egress=egress)
        self._policy("app-deny-all", args.namespace, {})
        out = [{"ports": _ports(*DNS_PORTS)}, self._to_database()]  # of any address: it may be the node's own
        self._policy("migration", args.namespace, naming.selector(MIGRATION), egress=out)
        api_server = {
            "to": _blocks(args.api_server_cidrs),
            "ports": _ports(*(("TCP", port) for port in API_SERVER_PORTS)),
        }
        callers = [*args.requester_namespaces, *filter(None, [args.monitoring_namespace])]
        ingress = [{"from": _namespaces(callers), "ports": _ports(("TCP", HTTP_PORT))}] if callers else []
        rules = [*out, api_server] if args.api_server_cidrs else out
        self._policy("controller", args.namespace, naming.selector(CONTROLLER), ingress=ingress, egress=rules)
        if not args.database_cidrs:
            clients: list[Rule] = [
                {"podSelector": {"matchLabels": naming.selector(one)}} for one in (CONTROLLER, MIGRATION)
            ]
            clients += _namespaces(args.requester_namespaces)
            taken = [{"from": clients, "ports": _ports(("TCP", PORT))}]
            self._policy("database", args.namespace, naming.selector(DATABASE), ingress=taken)
        self.register_outputs({})

    def _to_database(self) -> Rule:
        args = self._args
        inside = [{"podSelector": {"matchLabels": args.naming.selector(DATABASE)}}]
        to = _blocks(args.database_cidrs) if args.database_cidrs else inside
        return {"to": to, "ports": _ports(("TCP", args.database_port))}

    def _policy(
        self,
        name: str,
        namespace: pulumi.Input[str],
        pods: Mapping[str, str],
        *,
        ingress: Sequence[Rule] = (),
        egress: Sequence[Rule] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Both ways are always ruled: a way without a rule is closed."""
        naming = self._args.naming
        spec: Any = {
            "podSelector": {"matchLabels": pods} if pods else {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": list(ingress),
            "egress": list(egress),
        }
        k8s.networking.v1.NetworkPolicy(
            name,
            metadata=naming.metadata("network", namespace, f"{naming.name}-{name}"),
            spec=spec,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(parent=self)),
        )


def _ports(*pairs: tuple[str, pulumi.Input[int]]) -> list[Rule]:
    """Protocol and port of each."""
    return [{"protocol": protocol, "port": port} for protocol, port in pairs]


def _blocks(cidrs: Sequence[str]) -> list[Rule]:
    """Peers in these ranges."""
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def _to_outside(reached: Sequence[str]) -> list[Rule]:
    """To these ranges and, where it is among them, to the resolver."""
    cidrs = [one for one in reached if one != RESOLVER]
    rules: list[Rule] = [{"to": _outside(cidrs)}] if cidrs else []
    if RESOLVER in reached:
        rules.append({"to": list(RESOLVERS), "ports": _ports(*DNS_PORTS)})
    return rules


def _outside(cidrs: Sequence[str]) -> list[Rule]:
    """Peers in these ranges, less the internal networks inside a wider one; one that is named itself counts."""
    peers: list[Rule] = []
    for cidr in cidrs:
        kept = [one for one in INTERNAL if one != cidr and _holds(cidr, one)]
        peers.append({"ipBlock": {"cidr": cidr, **({"except": kept} if kept else {})}})
    return peers


def _holds(wide: str, narrow: str) -> bool:
    one, other = ip_network(wide), ip_network(narrow)
    return one.version == other.version and other.subnet_of(one)  # type: ignore[arg-type]


def _namespaces(names: Sequence[str]) -> list[Rule]:
    """Peers in these namespaces."""
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in names]
