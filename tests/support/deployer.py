"""A login of a platform's: two namespaces that are ready, and just the rights in them that somebody gave."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from tests.support.cluster import NAMESPACES, RESTRICTED, Admin
from tests.support.kubeconfig import kubeconfig

RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"
LOGIN = "deployer"
Rules = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Deployer:
    """Who stands up stacks. `home` holds the login, and `app` and `boxes` are for a stack."""

    admin: Admin
    home: str
    app: str
    boxes: str

    def may(self, rules: Rules, namespace: str | None = None) -> None:
        """Gives rights in a namespace, or in the cluster."""
        kind, place = ("ClusterRole", RBAC) if namespace is None else ("Role", f"{RBAC}/namespaces/{namespace}")
        name = f"{self.home}-{uuid4().hex[:4]}"
        self.admin.call("POST", f"{place}/{kind.lower()}s", {"metadata": {"name": name}, "rules": list(rules)})
        self.bind(kind, name, namespace)

    def bind(self, kind: str, name: str, namespace: str | None = None) -> None:
        """Gives the rights of a Role or ClusterRole that is there."""
        binding, place = (
            ("clusterrolebindings", RBAC) if namespace is None else ("rolebindings", f"{RBAC}/namespaces/{namespace}")
        )
        subject = {"kind": "ServiceAccount", "name": LOGIN, "namespace": self.home}
        body = {
            "metadata": {"name": f"{self.home}-{uuid4().hex[:4]}"},
            "roleRef": {"apiGroup": GROUP, "kind": kind, "name": name},
            "subjects": [subject],
        }
        self.admin.call("POST", f"{place}/{binding}", body)

    def kubeconfig(self) -> str:
        """The same as a file's text."""
        return yaml.safe_dump(self.kubeconfig_object())

    def kubeconfig_object(self) -> dict[str, Any]:
        """What the login reaches the cluster with, in a context of its name."""
        token = self.admin.call(
            "POST", f"{NAMESPACES}/{self.home}/serviceaccounts/{LOGIN}/token", {"spec": {"expirationSeconds": 7200}}
        )["status"]["token"]
        known = self.admin.configuration
        authority = base64.b64encode(Path(str(known.ssl_ca_cert)).read_bytes()).decode()
        cluster = {"server": known.host, "certificate-authority-data": authority}
        return kubeconfig(LOGIN, cluster, token)


@contextmanager
def deployer(labels: Mapping[str, str] = RESTRICTED) -> Iterator[Deployer]:
    """One without any right, and afterwards nothing of it."""
    admin, name = Admin(), f"deployer-{uuid4().hex[:6]}"
    made = Deployer(admin, name, f"{name}-app", f"{name}-boxes")
    try:
        for namespace in (made.home, made.app, made.boxes):
            admin.call("POST", NAMESPACES, {"metadata": {"name": namespace, "labels": dict(labels)}})
        admin.call("POST", f"{NAMESPACES}/{name}/serviceaccounts", {"metadata": {"name": LOGIN}})
        yield made
    finally:
        for kind in ("clusterrolebindings", "clusterroles"):
            for one in admin.call("GET", f"{RBAC}/{kind}")["items"]:
                if one["metadata"]["name"].startswith(f"{name}-"):
                    admin.call("DELETE", f"{RBAC}/{kind}/{one['metadata']['name']}")
        for namespace in (made.app, made.boxes, made.home):
            admin.call("DELETE", f"{NAMESPACES}/{namespace}")
