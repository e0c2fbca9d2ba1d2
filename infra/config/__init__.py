"""A stack's configuration, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.config import values
from infra.config.reader import Reader
from infra.errors import ConfigError

ONLY_DOCKER = ("databasePort", "httpPort", "dockerSocket", "dockerSocketGroup")
PUSHING = ("registry", "pullRegistry", "registryUsername", "registryPassword")
ONLY_KUBERNETES = (
    *PUSHING,
    "imagePullSecret",
    "databaseUrl",
    "databaseCidrs",
    "storageClass",
    "storageSize",
    "kubeContext",
    "namespace",
    "sandboxNamespace",
    "createNamespaces",
    "createLimits",
    "replicas",
    "quotaCpu",
    "quotaMemory",
    "quotaPods",
    "requesterNamespaces",
    "monitoringNamespace",
    "apiServerCidrs",
    "egressCidrs",
    "jobOptions",
)
OF_LIMITS = ("quotaCpu", "quotaMemory", "quotaPods")
OF_OWN_DATABASE = ("databasePassword", "postgresImage", "storageClass", "storageSize")
ANYWHERE = ("0.0.0.0/0",)
ANYWHERE_BY_NAME = (*ANYWHERE, values.RESOLVER)
LONGEST_NAME = 43  # with "-database-" and a revision's hash it is a label of the database's pod: 63 characters at most


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
    create_limits: bool | None  # None: if the context's user may
    replicas: int
    quota_cpu: str
    quota_memory: str
    quota_pods: int
    requester_namespaces: tuple[str, ...]
    monitoring_namespace: str | None
    api_server_cidrs: tuple[str, ...]
    egress_cidrs: tuple[str, ...]

    max_running: int
    drain_seconds: int
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
        return _read(Reader(pulumi.get_project(), pulumi.get_stack()))


def _read(reader: Reader) -> Config:
    get, name = reader.get, f"{reader.project}-{reader.stack}"
    target = get("target", values.optional(values.one_of("docker", "kubernetes")), None) or ""
    if not reader.has("target"):
        reader.fault("target", "is missing; it takes docker or kubernetes")
    # Pulumi.yaml holds the defaults: a 0, False or "" here stands in for a value that is refused.
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
        database_port=get("databasePort", values.whole(1, 65_535), 0),
        storage_class=get("storageClass", values.optional(values.subdomain), None),
        storage_size=get("storageSize", values.quantity, ""),
        protect_database=get("protectDatabase", values.boolean, False),
        http_port=get("httpPort", values.whole(1, 65_535), 0),
        docker_socket=get("dockerSocket", values.optional(values.text), None),
        docker_socket_group=get("dockerSocketGroup", values.optional(values.whole(0, 2**31)), None),
        kube_context=get("kubeContext", values.optional(values.text), None),
        namespace=get("namespace", values.label, name),
        sandbox_namespace=get("sandboxNamespace", values.label, f"{name}-sandboxes"),
        create_namespaces=get("createNamespaces", values.boolean, False),
        create_limits=_create_limits(reader),
        replicas=get("replicas", values.whole(0, 100), 0),
        quota_cpu=get("quotaCpu", values.quantity, ""),
        quota_memory=get("quotaMemory", values.quantity, ""),
        quota_pods=get("quotaPods", values.whole(0, 1_000_000), 0),
        requester_namespaces=get("requesterNamespaces", values.list_of(values.label), ()),
        monitoring_namespace=get("monitoringNamespace", values.optional(values.label), None),
        api_server_cidrs=get("apiServerCidrs", values.list_of(values.cidr), ANYWHERE),
        egress_cidrs=get("egressCidrs", values.list_of(values.reached), ANYWHERE_BY_NAME),
        max_running=get("maxRunning", values.whole(0, 1_000_000), 0),
        drain_seconds=get("drainSeconds", values.whole(0, 604_800), 0),
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


def _together(reader: Reader, config: Config) -> None:
    """Notes keys that need or exclude each other."""
    others = {"docker": ("kubernetes", ONLY_KUBERNETES), "kubernetes": ("docker", ONLY_DOCKER)}
    if config.target in others:
        other, keys = others[config.target]
        for key in filter(reader.has, keys):
            reader.fault(key, f"is for target {other} alone")
    match config.target:
        case "docker":
            _engine(reader, config)
        case "kubernetes":
            _names(reader, config)
            _registry(reader, config)
            _database(reader, config)


def _create_limits(reader: Reader) -> bool | None:
    """Limits that are configured, or that are of the stack's own namespace, are not left out silently."""
    asked = reader.get("createLimits", values.optional(values.boolean), None)
    if asked is False:
        for key in filter(reader.has, OF_LIMITS):
            reader.fault(key, "is for the ResourceQuota, and createLimits is false")
    if asked is None and (any(map(reader.has, OF_LIMITS)) or reader.get("createNamespaces", values.boolean, False)):
        return True
    return asked


def _engine(reader: Reader, config: Config) -> None:
    if 0 < config.database_port == config.http_port:
        reader.fault("httpPort", "takes another port than databasePort")
    if config.docker_socket is None and reader.has("dockerSocketGroup"):
        reader.fault("dockerSocketGroup", "is for dockerSocket, and that is none")
    if config.docker_socket is not None and not config.docker_socket.startswith("/"):
        reader.fault("dockerSocket", f"takes an absolute path, or nothing; it is {config.docker_socket!r}")


def _names(reader: Reader, config: Config) -> None:
    if len(config.name) > LONGEST_NAME or not values.LABEL.fullmatch(config.name):
        takes = f"lower-case letters, digits and -, at most {LONGEST_NAME - len(reader.project) - 1} characters"
        reader.faults.append(
            f"the stack's name {reader.stack!r} is no part of a Kubernetes name: choose one of {takes}"
        )
    own = {config.namespace, config.sandbox_namespace}
    if len(own) < 2:
        reader.fault("sandboxNamespace", "takes another namespace than the app's: sandboxes share none with it")
    asked = config.requester_namespaces
    if len(set(asked)) < len(asked) or own & set(asked):
        reader.fault("requesterNamespaces", "takes each namespace once, and none of the stack's own")
    if config.monitoring_namespace == config.sandbox_namespace:
        reader.fault("monitoringNamespace", "takes another namespace than the sandboxes': they reach nothing")


def _registry(reader: Reader, config: Config) -> None:
    for one, other in (("registryUsername", "registryPassword"), ("registryPassword", "registryUsername")):
        if reader.has(one) and not reader.has(other):
            reader.fault(other, f"is missing, and {one} is given")
    if config.builds and not reader.has("registry"):
        words = "is missing: images are built here, and the cluster pulls them from a registry"
        reader.fault(
            "registry", f"{words}; it takes one such as registry.example.com/team (or give appImage and sandboxImage)"
        )
    if not config.builds:
        for key in filter(reader.has, PUSHING):
            reader.fault(key, "is for images that are built here, and both are prebuilt")


def _database(reader: Reader, config: Config) -> None:
    if not reader.has("databaseUrl"):
        if config.database_cidrs:
            reader.fault("databaseCidrs", "is for the server of databaseUrl, and that is not given")
        return
    if not config.database_cidrs:
        words = "is missing: where databaseUrl's server is, for the network policies to let through"
        reader.fault("databaseCidrs", words)
    for key in filter(reader.has, OF_OWN_DATABASE):
        reader.fault(key, "is for the database that is made here, and databaseUrl names another")
