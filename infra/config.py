"""A stack's configuration, read once; the only place with a key's name and what it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import pulumi
from pulumi.runtime.config import CONFIG

from infra import values

T = TypeVar("T")


ONLY_DOCKER = ("dockerSocketGroup",)
ONLY_KUBERNETES = (
    *("registry", "pullRegistry", "registryUsername", "registryPassword", "imagePullSecret"),
    *("databaseUrl", "databaseCidrs", "storageClass", "kubeContext", "namespace", "sandboxNamespace"),
    *("requesterNamespaces", "monitoringNamespace", "jobOptions"),
)


class ConfigError(pulumi.RunError):
    """The stack's configuration is wrong; the message says each key, what it was given and what it takes."""


@dataclass(frozen=True)
class Config:
    """Every key, checked. Secrets are outputs; what may be left out and was, is None or empty."""

    project: str
    stack: str
    target: str

    registry: str | None
    pull_registry: str | None
    registry_username: str | None
    registry_password: pulumi.Output[str] | None
    app_image: str | None
    sandbox_image: str | None
    postgres_image: str
    image_pull_secret: str | None

    database_url: pulumi.Output[str] | None
    database_cidrs: tuple[str, ...]
    database_password: pulumi.Output[str] | None
    database_port: int
    storage_class: str | None
    storage_size: str
    protect_database: bool

    http_port: int
    docker_socket: str | None
    docker_socket_group: int | None

    kube_context: str | None
    namespace: str
    sandbox_namespace: str
    create_namespaces: bool
    replicas: int
    quota_cpu: str
    quota_memory: str
    quota_pods: int
    requester_namespaces: tuple[str, ...]
    monitoring_namespace: str | None
    api_server_cidrs: tuple[str, ...]
    egress_cidrs: tuple[str, ...]

    max_running: int
    job_options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What fixed names begin with."""
        return f"{self.project}-{self.stack}"

    @property
    def builds(self) -> bool:
        """Whether an image is built here."""
        return self.app_image is None or self.sandbox_image is None

    @classmethod
    def read(cls) -> Config:
        """The stack's configuration. Raises ConfigError."""
        return _read(_Reader(pulumi.get_project(), pulumi.get_stack()))


class _Reader:
    """Reads key after key, and collects what is wrong with them."""

    def __init__(self, project: str, stack: str) -> None:
        self.project, self.stack = project, stack
        self.faults: list[str] = []
        self.known: set[str] = set()

    def fault(self, key: str, words: str) -> None:
        """Notes what is wrong with a key."""
        self.faults.append(f"{self.project}:{key} {words}")

    def get(self, key: str, check: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        """The checked value; the default where there is none or it is wrong."""
        raw = self._raw(key)
        if raw is None:
            return default
        try:
            return check(raw)
        except ValueError as error:
            self.fault(key, f"{error}" if secret else f"{error}; it is {raw!r}")
            return default

    def secret(self, key: str, check: Callable[[str], str] = values.text) -> pulumi.Output[str] | None:
        """The checked value, secret wherever it goes."""
        found = self.get(key, values.optional(check), None, secret=True)
        return None if found is None else pulumi.Output.secret(found)

    def has(self, key: str) -> bool:
        """Whether the key has a value that is not empty."""
        return bool(self._raw(key))

    def unknown(self) -> None:
        """Notes keys that nobody asked for."""
        for full in CONFIG.get():
            space, _, key = full.partition(":")
            if space == self.project and key not in self.known:
                near = get_close_matches(key, self.known, n=1)
                self.fault(key, f"is no key of this project; {f'is {near[0]} meant?' if near else 'see Pulumi.yaml'}")

    def _raw(self, key: str) -> str | None:
        self.known.add(key)
        found = pulumi.runtime.get_config(f"{self.project}:{key}")
        return found if found is None or isinstance(found, str) else json.dumps(found)


def _read(reader: _Reader) -> Config:
    get = reader.get
    target = get("target", values.one_of("docker", "kubernetes"), "")
    if not reader.has("target"):
        reader.fault("target", "is missing; it takes docker or kubernetes")
    config = Config(
        project=reader.project,
        stack=reader.stack,
        target=target,
        registry=get("registry", values.optional(values.registry), None),
        pull_registry=get("pullRegistry", values.optional(values.registry), None),
        registry_username=get("registryUsername", values.optional(values.text), None),
        registry_password=reader.secret("registryPassword"),
        app_image=get("appImage", values.optional(values.image), None),
        sandbox_image=get("sandboxImage", values.optional(values.image), None),
        postgres_image=get("postgresImage", values.image, ""),
        image_pull_secret=get("imagePullSecret", values.optional(values.subdomain), None),
        database_url=reader.secret("databaseUrl", values.database),
        database_cidrs=get("databaseCidrs", values.list_of(values.cidr), ()),
        database_password=reader.secret("databasePassword"),
        database_port=get("databasePort", values.whole(1, 65_535), 5432),
        storage_class=get("storageClass", values.optional(values.subdomain), None),
        storage_size=get("storageSize", values.quantity, ""),
        protect_database=get("protectDatabase", values.boolean, False),
        http_port=get("httpPort", values.whole(1, 65_535), 3000),
        docker_socket=get("dockerSocket", values.optional(values.text), None),
        docker_socket_group=get("dockerSocketGroup", values.optional(values.whole(0, 2**31)), None),
        kube_context=get("kubeContext", values.optional(values.text), None),
        namespace=get("namespace", values.label, f"{reader.project}-{reader.stack}"),
        sandbox_namespace=get("sandboxNamespace", values.label, f"{reader.project}-{reader.stack}-sandboxes"),
        create_namespaces=get("createNamespaces", values.boolean, True),
        replicas=get("replicas", values.whole(0, 100), 2),
        quota_cpu=get("quotaCpu", values.quantity, ""),
        quota_memory=get("quotaMemory", values.quantity, ""),
        quota_pods=get("quotaPods", values.whole(0, 1_000_000), 0),
        requester_namespaces=get("requesterNamespaces", values.list_of(values.label), ()),
        monitoring_namespace=get("monitoringNamespace", values.optional(values.label), None),
        api_server_cidrs=get("apiServerCidrs", values.list_of(values.cidr), ()),
        egress_cidrs=get("egressCidrs", values.list_of(values.cidr), ()),
        max_running=get("maxRunning", values.whole(0, 1_000_000), 0),
        job_options=get("jobOptions", values.options, {}),
    )
    _together(reader, config)
    reader.unknown()
    if reader.faults:
        raise ConfigError(
            f"the configuration of stack {reader.stack} cannot be used:\n  "
            + "\n  ".join(sorted(reader.faults))
            + f"\nset a key with: pulumi config set --stack {reader.stack} KEY VALUE"
        )
    return config


def _together(reader: _Reader, config: Config) -> None:
    """Notes keys that need or exclude each other."""
    others = {"docker": ("kubernetes", ONLY_KUBERNETES), "kubernetes": ("docker", ONLY_DOCKER)}
    if config.target in others:
        other, keys = others[config.target]
        for key in filter(reader.has, keys):
            reader.fault(key, f"is for target {other} alone")
    for key, value in (("namespace", config.namespace), ("sandboxNamespace", config.sandbox_namespace)):
        if config.target == "kubernetes" and not reader.has(key) and not values.LABEL.fullmatch(value):
            reader.fault(key, f"is missing, and its default {value!r} is no name of a namespace: choose one")
    if config.target == "kubernetes" and config.builds and not reader.has("registry"):
        words = "is missing: images are built here, and the cluster pulls them from a registry"
        reader.fault(
            "registry", f"{words}; it takes one such as registry.example.com/team (or give appImage and sandboxImage)"
        )
    for one, other in (("registryUsername", "registryPassword"), ("registryPassword", "registryUsername")):
        if reader.has(one) and not reader.has(other):
            reader.fault(other, f"is missing, and {one} is given")
    if config.pull_registry and not reader.has("registry"):
        reader.fault("registry", "is missing: pullRegistry is the cluster's name for it")
    if config.target == "kubernetes" and reader.has("databaseUrl") and not config.database_cidrs:
        reader.fault(
            "databaseCidrs", "is missing: where databaseUrl's server is, for the network policies to let through"
        )
    if reader.has("databaseUrl") and reader.has("databasePassword"):
        reader.fault("databasePassword", "is for the database that is made here, and databaseUrl names another")
    asked = config.requester_namespaces
    if len(set(asked)) < len(asked) or {config.namespace, config.sandbox_namespace} & set(asked):
        reader.fault("requesterNamespaces", "takes each namespace once, and none of the stack's own")
    if config.target == "kubernetes" and config.namespace == config.sandbox_namespace:
        reader.fault("sandboxNamespace", "takes another namespace than the app's: sandboxes share none with it")
    if config.docker_socket is not None and not config.docker_socket.startswith("/"):
        reader.fault("dockerSocket", f"takes an absolute path, or nothing; it is {config.docker_socket!r}")
