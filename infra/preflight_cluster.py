"""Which cluster the stack goes to, whether it answers, and what must be there already."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import urllib3
import yaml
from kubernetes import client
from kubernetes import config as kubeconfig

from infra.config import Config
from infra.errors import PreflightError
from infra.kubernetes_pods import CONTROLLER, Place

SECONDS = 10  # for an answer
IDENTITY = "kube-system"  # the namespace whose uid tells a cluster from another (OpenTelemetry's k8s.cluster.uid)


@dataclass(frozen=True)
class Cluster:
    """One cluster, whatever its contexts are called: `uid` stays when they are renamed."""

    context: str
    uid: str


def find_cluster(config: Config) -> Cluster:
    """The cluster, which has all that the configuration says is there. Raises PreflightError."""
    if config.kube_context is None and os.pathsep in os.environ.get("KUBECONFIG", ""):
        words = "is missing: KUBECONFIG names several files, and programs differ on whose current context counts"
        raise PreflightError(f"{config.project}:kubeContext {words}")
    try:
        context = config.kube_context or kubeconfig.list_kube_config_contexts()[1]["name"]
        settings = client.Configuration()
        settings.retries = False
        api = kubeconfig.new_client_from_config(context=context, client_configuration=settings)
    except (kubeconfig.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError, KeyError) as error:
        advice = f"set KUBECONFIG to a kubeconfig, and {config.project}:kubeContext to a context of it"
        raise PreflightError(f"no cluster is configured: {' '.join(str(error).split())}; {advice}") from error
    asked = _Asked(client.CoreV1Api(api), f"the cluster at {api.configuration.host} (context {context})")
    uid = asked.namespace(IDENTITY).metadata.uid
    if not config.create_namespaces:
        for namespace in (config.namespace, config.sandbox_namespace):
            _not_ours(config, asked.namespace(namespace))
    for namespace in config.requester_namespaces:
        asked.namespace(namespace)
    if config.image_pull_secret is not None:
        for namespace in (config.namespace, config.sandbox_namespace):
            asked.secret(config.image_pull_secret, namespace)
    return Cluster(context, uid)


def _not_ours(config: Config, namespace: Any) -> None:
    """To stop making a namespace is to delete it, with the database or the sandboxes in it."""
    made = Place(config.project, config.stack).labels(CONTROLLER)
    if made.items() <= (namespace.metadata.labels or {}).items():
        name, key = namespace.metadata.name, f"{config.project}:createNamespaces"
        raise PreflightError(f"namespace {name} is this stack's own, and would go with all in it: {key} stays true")


@dataclass(frozen=True)
class _Asked:
    """What a cluster says; `where` names it in errors."""

    core: client.CoreV1Api
    where: str

    def namespace(self, name: str) -> Any:
        return self._ask(f"namespace {name}", lambda: self.core.read_namespace(name, _request_timeout=SECONDS))

    def secret(self, name: str, namespace: str) -> None:
        thing = f"secret {name} in namespace {namespace}, which imagePullSecret names"
        self._ask(thing, lambda: self.core.read_namespaced_secret(name, namespace, _request_timeout=SECONDS))

    def _ask(self, thing: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except client.ApiException as error:
            if error.status != 404:
                raise PreflightError(
                    f"{self.where} does not show the {thing} ({error.reason}): the context's user needs `get` on it"
                ) from error
            raise PreflightError(f"{self.where} has no {thing}: create it first") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise PreflightError(
                f"{self.where} does not answer: {error}; start it, or name another kubeContext"
            ) from error
