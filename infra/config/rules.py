"""The rules between keys: which need each other, and which exclude each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from controller.protocol.names import is_label
from infra.config.keys import Key
from infra.config.reader import Reader

if TYPE_CHECKING:
    from infra.config import Config

PUSHING = ("registry", "pullRegistry", "registryUsername", "registryPassword")
OF_LIMITS = ("quotaCpu", "quotaMemory", "quotaPods")
OF_OWN_DATABASE = ("databasePassword", "postgresImage", "storageClass", "storageSize")
LONGEST_NAME = 43  # with "-database-" and a revision's hash it is a label of the database's pod: 63 characters at most


def check_together(reader: Reader, config: Config, keys: Iterable[Key]) -> None:
    """Notes keys that need or exclude each other."""
    if config.target:
        for key in keys:
            if key.of not in ("both", config.target) and reader.has(key.name):
                reader.fault(key.name, f"applies only to the target {key.of}")
    match config.target:
        case "docker":
            _check_engine(reader, config)
        case "kubernetes":
            _check_names(reader, config)
            _check_registry(reader, config)
            _check_database(reader, config)


def create_limits(reader: Reader, asked: bool | None, create_namespaces: bool) -> bool | None:
    """Whether limits are created; None if the user's rights decide.

    Limits that are configured, or that belong to the stack's own namespace, are not left out silently.
    """
    given = reader.given(OF_LIMITS)
    if asked is False:
        for key in given:
            reader.fault(key, "needs a ResourceQuota, and createLimits is false")
    return True if asked is None and (given or create_namespaces) else asked


def _check_engine(reader: Reader, config: Config) -> None:
    if config.database_port == config.http_port and reader.refused.isdisjoint(("databasePort", "httpPort")):
        reader.fault("httpPort", "must differ from databasePort")
    if config.docker_socket is None and reader.has("dockerSocketGroup"):
        reader.fault("dockerSocketGroup", "needs dockerSocket, which is empty")
    if config.docker_socket is not None and not config.docker_socket.startswith("/"):
        reader.fault("dockerSocket", f"takes an absolute path, or an empty value; it is {config.docker_socket!r}")


def _check_names(reader: Reader, config: Config) -> None:
    if len(config.name) > LONGEST_NAME or not is_label(config.name):
        takes = f"lower-case letters, digits and -, at most {LONGEST_NAME - len(reader.project) - 1} characters"
        reader.faults.append(f"the stack's name {reader.stack!r} cannot be part of a Kubernetes name: use {takes}")
    own = {config.namespace, config.sandbox_namespace}
    if len(own) < 2:
        reader.fault("sandboxNamespace", "must differ from the app's namespace")
    asked = config.requester_namespaces
    if len(set(asked)) < len(asked) or own & set(asked):
        reader.fault("requesterNamespaces", "takes each namespace once, and none of the stack's own")
    if config.monitoring_namespace == config.sandbox_namespace:
        reader.fault("monitoringNamespace", "must differ from the sandboxes' namespace, which reaches nothing")


def _check_registry(reader: Reader, config: Config) -> None:
    for one, other in (("registryUsername", "registryPassword"), ("registryPassword", "registryUsername")):
        if reader.has(one) and not reader.has(other):
            reader.fault(other, f"is missing, and {one} is given")
    if config.builds and not reader.has("registry"):
        words = "is missing: images are built here, and the cluster pulls them from a registry"
        reader.fault(
            "registry", f"{words}; it takes one such as registry.example.com/team (or give appImage and sandboxImage)"
        )
    if not config.builds:
        for key in reader.given(PUSHING):
            reader.fault(key, "applies only to images that are built here, and both are prebuilt")


def _check_database(reader: Reader, config: Config) -> None:
    if not reader.has("databaseUrl"):
        if config.database_cidrs:
            reader.fault("databaseCidrs", "needs databaseUrl, which is missing")
        return
    if not config.database_cidrs:
        words = "is missing: the addresses of databaseUrl's server, which the network policies must allow"
        reader.fault("databaseCidrs", words)
    for key in reader.given(OF_OWN_DATABASE):
        reader.fault(key, "applies only to a database that the stack creates, and databaseUrl names an existing one")
