"""The preflight of a cluster: which one it is, whether it answers, and whether the stack can come up there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Thread

import yaml
from kubernetes import config as kubeconfig

from infra.cluster.client import ClusterClient, ClusterError, ForbiddenError
from infra.cluster.rights import LIMITS, Right, each, granted, instead, rights
from infra.config import Config
from infra.errors import PreflightError
from infra.preflight.by_hand import autoscaler, changed_by_hand
from infra.preflight.classes import api_server_faults, class_faults, node_warnings, secret_faults
from infra.preflight.database import database_faults
from infra.preflight.namespaces import given_namespaces, made_namespaces, taken_namespaces
from infra.preflight.rights import in_words, lacking

ALL_SECONDS = 25.0  # for every answer of a preflight
IDENTITY = "kube-system"  # the namespace whose uid identifies a cluster (OpenTelemetry's k8s.cluster.uid)
LEAST = 30  # minor version of Kubernetes 1
GONE = "if the cluster is gone for good, forget the stack with `pulumi stack rm --force`"
SECTION = "docs/stacks.md, Rights"


@dataclass(frozen=True)
class Cluster:
    """One cluster; `uid` stays the same when its contexts are renamed.

    `faults` stop an `up` before anything is created, and nothing else; `warnings` are reported. `taken`: objects of
    the stack's name, or another stack, in a given namespace. `limits`: whether a LimitRange and a ResourceQuota are
    created. `left`: the error for each namespace that would be created and is there. `autoscaler`: the name of the
    HorizontalPodAutoscaler that decides how many controllers run.
    """

    context: str
    uid: str
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    limits: bool = True
    left: Mapping[str, str] = field(default_factory=dict)
    autoscaler: str | None = None


def find_cluster(config: Config) -> Cluster:
    """The cluster, and everything that is wrong with it. Raises PreflightError if it cannot be identified."""
    context, cluster = _reached(config)
    found = Cluster(context, _uid(cluster))
    try:
        return _looked_at(found, cluster, config)
    except ClusterError as error:  # it answers some questions, and no stack comes up on such a cluster; one may end
        return replace(found, faults=(str(error),))


def _looked_at(found: Cluster, cluster: ClusterClient, config: Config) -> Cluster:
    limits, missing, warnings = _rights(cluster, config)
    namespaces, left = made_namespaces(cluster, config)
    faults = (
        *version_faults(cluster),
        *missing,
        *namespaces,
        *given_namespaces(cluster, config),
        *secret_faults(cluster, config),
        *database_faults(cluster, config),
        *class_faults(cluster, config),
        *api_server_faults(cluster, config),
    )
    scaler = autoscaler(cluster, config)
    said = (*warnings, *node_warnings(cluster, config), *changed_by_hand(cluster, config, scaler))
    taken = tuple(taken_namespaces(cluster, config))
    return replace(found, faults=faults, warnings=said, taken=taken, limits=limits, left=left, autoscaler=scaler)


def _reached(config: Config) -> tuple[str, ClusterClient]:
    if config.kube_context is None and os.pathsep in os.environ.get("KUBECONFIG", ""):
        words = (
            "is missing: KUBECONFIG names several files, and programs differ on which file's current context they use"
        )
        raise PreflightError(f"{config.project}:kubeContext {words}")
    try:
        context = config.kube_context or kubeconfig.list_kube_config_contexts()[1]["name"]
        return context, _client(context)
    except (kubeconfig.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError, KeyError) as error:
        advice = f"set KUBECONFIG to a kubeconfig, and {config.project}:kubeContext to a context of it; {GONE}"
        raise PreflightError(f"no cluster is configured: {' '.join(str(error).split())}; {advice}") from error


def _client(context: str) -> ClusterClient:
    """A client, within a time limit: a program of the kubeconfig may wait for a login that nobody can see."""
    created: Future[ClusterClient] = Future()

    def make() -> None:
        try:
            created.set_result(ClusterClient(context, ALL_SECONDS))
        except Exception as error:
            created.set_exception(error)

    Thread(target=make, daemon=True).start()
    try:
        return created.result(ALL_SECONDS)
    except TimeoutError as error:
        words = f"context {context} has no login after {ALL_SECONDS:.0f} s: its program may wait for one"
        raise PreflightError(f"{words}; `kubectl --context {context} get namespaces` shows it") from error


def _uid(cluster: ClusterClient) -> str:
    try:
        found = cluster.get(f"/api/v1/namespaces/{IDENTITY}")
    except ForbiddenError as error:
        needs = f"the context's user needs `get` on it, by which a stack knows its cluster ({SECTION})"
        raise PreflightError(f"{error}; {needs}") from error
    except ClusterError as error:
        raise PreflightError(f"{error}; start it, or name another kubeContext; {GONE}") from error
    if found is None:
        raise PreflightError(f"{cluster.where} has no namespace {IDENTITY}: is it a Kubernetes cluster?")
    return str(found["metadata"]["uid"])


def version_faults(cluster: ClusterClient) -> Sequence[str]:
    """A fault if the cluster is too old."""
    version = cluster.get("/version") or {}
    minor = "".join(filter(str.isdigit, str(version.get("minor", ""))))
    if version.get("major") == "1" and minor and int(minor) < LEAST:
        return [f"{cluster.where} is Kubernetes 1.{minor}: the stack needs 1.{LEAST} or newer"]
    return []


def _rights(cluster: ClusterClient, config: Config) -> tuple[bool, Sequence[str], Sequence[str]]:
    """Whether limits are created; a line for each namespace with missing rights; a warning for what is left out."""
    missing = lacking(cluster, rights(config))
    held = set(each(granted(config.sandbox_namespace)))
    if not held.isdisjoint(missing) and not lacking(cluster, instead(config.sandbox_namespace)):
        missing = [one for one in missing if one not in held]
    others = [one for one in missing if not _of_limits(one)]
    if config.create_limits is not None or len(others) == len(missing):
        return config.create_limits is not False, _told(config, missing), ()
    if _limited(cluster, config):
        return True, _told(config, others), ()
    warning = (
        f"The context's user may not create a LimitRange or ResourceQuota in {config.sandbox_namespace}, so none is"
        f" created. To confirm that the platform sets limits: {config.project}:createLimits false."
    )
    return False, _told(config, others), [warning]


def _limited(cluster: ClusterClient, config: Config) -> bool:
    """Whether somebody with the right has created them: to leave them out now would delete them."""
    try:
        return cluster.get(f"/api/v1/namespaces/{config.sandbox_namespace}/resourcequotas/{config.name}") is not None
    except ForbiddenError:
        return False


def _of_limits(right: Right) -> bool:
    return right.kind in LIMITS


def _told(config: Config, missing: Sequence[Right]) -> Sequence[str]:
    words = list(in_words(missing))
    if any(_of_limits(one) for one in missing):
        words.append(f"if the platform sets the limits, {config.project}:createLimits false leaves them to it")
    return [*words, f"the rights to ask for are in {SECTION}"] if words else []
