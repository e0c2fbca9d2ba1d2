"""The cluster that KUBECONFIG names: a namespace of the tests' own, and a login with just the controller's Role."""

from __future__ import annotations

import atexit
import base64
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import urllib3
import yaml
from kubernetes import client, config

import controller.backends.kubernetes
from controller.backends.kubernetes.backend import KubernetesBackend
from controller.backends.kubernetes.manifest import RECORDED
from tests.support.kubeconfig import kubeconfig

ROLE = Path(controller.backends.kubernetes.__file__).parent / "role.yaml"
IMAGE = os.environ.get("TEST_CLUSTER_IMAGE", "localhost:5000/busybox:stable")  # any image with /bin/sh and nc
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
LOGIN = "sandbox-controller"
NAMESPACES = "/api/v1/namespaces"


class Refusal(Exception):
    """The API server answered with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status


class Admin:
    """Whoever may do everything. Raises ConfigException where no cluster is configured."""

    def __init__(self) -> None:
        self.configuration = client.Configuration()
        config.load_kube_config(client_configuration=self.configuration)
        self.configuration.retries = False
        self._api = client.ApiClient(self.configuration)

    def call(
        self, method: str, path: str, body: Any = None, content: str = "application/json", timeout: float = 10
    ) -> Any:
        """One request; its answer, decoded."""
        headers = {"Content-Type": content, "Accept": "application/json"}
        sent = self._api.param_serialize(method, path, header_params=headers, body=body, auth_settings=["BearerToken"])
        response = self._api.call_api(*sent, _request_timeout=timeout)
        raw = response.read()
        if response.status >= 300:
            raise Refusal(response.status, raw.decode("utf-8", "replace"))
        return json.loads(raw)


@dataclass(frozen=True)
class Namespace:
    """One namespace for sandboxes, and who may do what in it."""

    name: str
    kubeconfig: str  # of the login that has the Role
    admin: Admin

    def backend(self, image: str = IMAGE, list_seconds: float = 1.0, **options: Any) -> KubernetesBackend:
        """An adapter with the controller's own rights."""
        return KubernetesBackend(self.name, image, list_seconds=list_seconds, kubeconfig=self.kubeconfig, **options)

    def path(self, kind: str, name: str = "") -> str:
        """Where a kind of object, or one of it, is found."""
        head = "/apis/batch/v1/namespaces" if kind == "jobs" else NAMESPACES
        return f"{head}/{self.name}/{kind}" + (f"/{name}" if name else "")

    def objects(self, kind: str, selector: str = "") -> Sequence[Any]:
        """Every object of a kind."""
        found: Sequence[Any] = self.admin.call("GET", f"{self.path(kind)}?labelSelector={selector}")["items"]
        return found

    def leftovers(self, selector: str) -> list[str]:
        """The paths of Jobs and pods that nobody is about to remove: all but recorded Jobs and what is theirs."""
        every = self.objects("jobs", selector)
        removed = {job["metadata"]["name"] for job in every if RECORDED in job["metadata"].get("annotations", {})}
        left = [self.path("jobs", job["metadata"]["name"]) for job in every if job["metadata"]["name"] not in removed]
        return left + [
            self.path("pods", pod["metadata"]["name"])
            for pod in self.objects("pods", selector)
            if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") not in removed
        ]

    def delete(self, path: str) -> None:
        """Deletes one object, where it is still there."""
        try:
            self.admin.call("DELETE", path, {"propagationPolicy": "Background"})
        except Refusal as error:
            if error.status != 404:
                raise

    def remove(self) -> None:
        """Deletes it with all that is in it."""
        self.admin.call("DELETE", f"{NAMESPACES}/{self.name}")


def make_namespace(
    rules: Sequence[Mapping[str, Any]] | None = None, labels: Mapping[str, str] = RESTRICTED
) -> Namespace:
    """A namespace, and in it a login that has these rules: by default those of the Role that is shipped."""
    admin, name = Admin(), f"sandboxes-{uuid4().hex[:8]}"
    admin.call("POST", NAMESPACES, {"metadata": {"name": name, "labels": dict(labels)}})
    accounts, rbac = f"{NAMESPACES}/{name}/serviceaccounts", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}"
    admin.call("POST", accounts, {"metadata": {"name": LOGIN}})
    role = yaml.safe_load(ROLE.read_text())
    admin.call("POST", f"{rbac}/roles", role | ({"rules": list(rules)} if rules is not None else {}))
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]}
    subject = {"kind": "ServiceAccount", "name": LOGIN, "namespace": name}
    binding = {"metadata": {"name": LOGIN}, "roleRef": reference, "subjects": [subject]}
    admin.call("POST", f"{rbac}/rolebindings", binding)
    token = admin.call("POST", f"{accounts}/{LOGIN}/token", {"spec": {"expirationSeconds": 86_400}})
    return Namespace(name, _kubeconfig(admin.configuration, token["status"]["token"]), admin)


@cache
def session_namespace() -> Namespace:
    """The one that tests share; each test has an installation of its own in it."""
    made = make_namespace()
    atexit.register(made.remove)
    return made


def _kubeconfig(configuration: client.Configuration, token: str) -> str:
    authority = base64.b64encode(Path(str(configuration.ssl_ca_cert)).read_bytes()).decode()
    cluster = {"server": configuration.host, "certificate-authority-data": authority}
    handle, path = tempfile.mkstemp(prefix="sandbox-kubeconfig-")
    with os.fdopen(handle, "w") as file:
        yaml.safe_dump(kubeconfig("test", cluster, token), file)
    atexit.register(lambda: Path(path).unlink(missing_ok=True))
    return path


def trouble() -> str | None:
    """Why there is no cluster to test on, None where there is one."""
    try:
        nodes = Admin().call("GET", "/api/v1/nodes", timeout=5)["items"]
    except config.ConfigException as error:
        return f"no cluster is configured (KUBECONFIG): {error}"
    except (Refusal, urllib3.exceptions.HTTPError, OSError) as error:
        return f"the cluster does not answer: {error}"
    ready = [one for node in nodes for one in node["status"]["conditions"] if one["type"] == "Ready"]
    return None if any(one["status"] == "True" for one in ready) else "the cluster has no node that is ready"
