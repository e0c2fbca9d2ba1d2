"""A stack's configuration: every key with its description, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from infra.config import rules, values
from infra.config.keys import Key, declared_keys, key, key_without_default, required_key, secret_key
from infra.config.reader import SCHEMA, Reader, schema_defaults
from infra.errors import ConfigError

ANYWHERE = ("0.0.0.0/0",)
ANYWHERE_BY_NAME = (*ANYWHERE, values.RESOLVER)


@dataclass(frozen=True)
class Config:
    """Every key, checked. Secrets are outputs. A key that may be left out and was, is None or empty."""

    project: str
    stack: str

    target: str = required_key(
        "target",
        values.one_of("docker", "kubernetes"),
        description="Where the stack runs: `docker` (an engine) or `kubernetes` (the cluster of `kubeContext`). It"
        " cannot change later.",
    )
    app_image: str | None = key_without_default(
        "appImage",
        values.optional(values.image),
        of="both",
        absent=None,
        shown="built",
        description="A prebuilt image of the controller, by digest or by a tag that is not `latest`. `python -m"
        " controller` must run in it as user 10001.",
    )
    sandbox_image: str | None = key_without_default(
        "sandboxImage",
        values.optional(values.image),
        of="both",
        absent=None,
        shown="built",
        description="A prebuilt image of sandboxes that name none, by digest or by a tag that is not `latest`.",
    )
    postgres_image: str = key(
        "postgresImage",
        values.image,
        of="both",
        default="postgres:15.14-bookworm",
        description="Image of the database that the stack creates. It is Postgres 15 or newer, and compatible with the"
        " official Debian image (user 999). Change only the minor version later: a new major version cannot read the"
        " old volume, needs dump and restore, and is refused (on a cluster, while the old one runs). If the registry"
        " needs a login: on dev run `docker pull` first; on a cluster set `imagePullSecret`.",
    )
    database_password: pulumi.Output[str] | None = secret_key(
        "databasePassword",
        of="both",
        shown="generated",
        description="The owner's password for the database that the stack creates; secret. To change it later, see"
        " [New passwords](#new-passwords).",
    )
    protect_database: bool = key(
        "protectDatabase",
        values.boolean,
        of="both",
        default=False,
        description="Refuse to destroy the database's volume, and the app's namespace if the stack created it. Set it"
        " if the data matters. Before a wanted `destroy`, set it to `false` and run `up`.",
    )
    max_running: int = key(
        "maxRunning",
        values.whole(0, 1_000_000),
        of="both",
        default=100,
        description="Sandboxes launching or running at once; more wait in the queue. On a cluster keep it within the"
        " quota and the nodes' room: a claimed sandbox that finds no room in 10 minutes fails, with `Unschedulable` if"
        " no node has room, with `StartTimeout` if the quota has none.",
    )
    drain_seconds: int = key(
        "drainSeconds",
        values.whole(0, 604_800),
        of="both",
        default=300,
        description="How long `destroy` waits for sandboxes to end; then it refuses, and lists what is left. `0` ends"
        " without a drain: see [Kept, changed, ended](#kept-changed-ended).",
    )

    database_port: int = key(
        "databasePort",
        values.whole(1, 65_535),
        of="docker",
        default=5432,
        description="The port of this machine's loopback on which the database listens.",
    )
    http_port: int = key(
        "httpPort",
        values.whole(1, 65_535),
        of="docker",
        default=3000,
        description="The port of this machine's loopback for `/healthz`, `/readyz` and `/metrics`.",
    )
    docker_socket: str | None = key(
        "dockerSocket",
        values.optional(values.text),
        of="docker",
        default="/var/run/docker.sock",
        description="The engine's socket, on its host; the app gets it to start sandboxes. If it is empty, commands"
        " run as processes inside the app's own container, and are lost with it.",
    )
    docker_socket_group: int | None = key_without_default(
        "dockerSocketGroup",
        values.optional(values.whole(0, 2**31)),
        of="docker",
        absent=None,
        shown="the socket's",
        description="The group that may use the socket, as a number: on Linux the socket's own, elsewhere 0. Required"
        " if `DOCKER_HOST` names another machine.",
    )

    registry: str | None = key_without_default(
        "registry",
        values.optional(values.registry),
        of="kubernetes",
        absent=None,
        shown="required to build",
        description="Where images are pushed, without scheme: `registry.example.com/team`. This and the next three"
        " keys are refused if both images are prebuilt.",
    )
    pull_registry: str | None = key_without_default(
        "pullRegistry",
        values.optional(values.registry),
        of="kubernetes",
        absent=None,
        shown="`registry`",
        description="The cluster's name for `registry`, if it has another.",
    )
    registry_username: str | None = key_without_default(
        "registryUsername",
        values.optional(values.text),
        of="kubernetes",
        absent=None,
        shown="what `docker login` left",
        description="The user to push as; together with `registryPassword`.",
    )
    registry_password: pulumi.Output[str] | None = secret_key(
        "registryPassword",
        of="kubernetes",
        shown="what `docker login` left",
        description="The password to push with; secret.",
    )
    image_pull_secret: str | None = key_without_default(
        "imagePullSecret",
        values.optional(values.subdomain),
        of="kubernetes",
        absent=None,
        shown="none",
        description="The name of a pull secret that exists in both namespaces before `up`: see [A registry with a"
        " login](#a-registry-with-a-login).",
    )
    kube_context: str | None = key_without_default(
        "kubeContext",
        values.optional(values.text),
        of="kubernetes",
        absent=None,
        shown="the kubeconfig's current",
        description="The context of the cluster. Set it in every stack that matters. It may be renamed: a stack knows"
        " its cluster by the uid of the namespace `kube-system`, and refuses another one (`up --refresh`, `refresh`"
        " and `destroy` see that with `--run-program` only).",
    )
    namespace: str = key_without_default(
        "namespace",
        values.label,
        of="kubernetes",
        absent="",
        shown="`PROJECT-STACK`",
        description="The app's namespace. Changing it later deletes the old one, with the database.",
    )
    sandbox_namespace: str = key_without_default(
        "sandboxNamespace",
        values.label,
        of="kubernetes",
        absent="",
        shown="`PROJECT-STACK-sandboxes`",
        description="The sandboxes' namespace. Changing it later deletes the old one; `drain` first, because sandboxes"
        " in it cannot be followed any more.",
    )
    create_namespaces: bool = key(
        "createNamespaces",
        values.boolean,
        of="kubernetes",
        default=True,
        description="Create both namespaces. If `false`, both must exist before the first `up`: label them yourself."
        " The stack's deny-all policies then apply to every pod in them, also to pods that are not the stack's. The"
        " context's user needs these [rights](#rights).",
    )
    create_limits: bool | None = key_without_default(
        "createLimits",
        values.optional(values.boolean),
        of="kubernetes",
        absent=None,
        shown="if the user may",
        description="Whether the stack creates a LimitRange and a ResourceQuota in the sandboxes' namespace. By"
        " default it does if it creates the namespace or a `quota…` key is set; else if the context's user may, with a"
        " warning if not. With `false` the platform sets them, and `quota…` keys are refused.",
    )
    replicas: int = key(
        "replicas", values.whole(0, 100), of="kubernetes", default=2, description="The number of controllers."
    )
    database_url: pulumi.Output[str] | None = secret_key(
        "databaseUrl",
        values.database,
        of="kubernetes",
        shown="a database is created",
        description="The URL of an existing Postgres 15 or newer, by a login that may create roles and owns the"
        " database; secret: see [An existing database](#an-existing-database). If you set it later, the stack's own"
        " database is deleted, with its rows.",
    )
    database_cidrs: tuple[str, ...] = key_without_default(
        "databaseCidrs",
        values.list_of(values.cidr),
        of="kubernetes",
        absent=(),
        shown="required with `databaseUrl`",
        description="The addresses of that database's servers, which the network policies allow. Behind a Service or a"
        " forwarded port, the real address counts.",
    )
    storage_class: str | None = key_without_default(
        "storageClass",
        values.optional(values.subdomain),
        of="kubernetes",
        absent=None,
        shown="the cluster's",
        description="The class of the database's volume. It cannot change after the first `up`; a change is refused.",
    )
    storage_size: str = key(
        "storageSize",
        values.quantity,
        of="kubernetes",
        default="10Gi",
        description="The size of the database's volume. It can grow if the class allows it; anything else is refused.",
    )
    quota_cpu: str = key(
        "quotaCpu",
        values.quantity,
        of="kubernetes",
        default="100",
        description="CPU limits of all sandboxes together: room for `maxRunning` at the usual 1,000 `cpu_millis`.",
    )
    quota_memory: str = key(
        "quotaMemory",
        values.quantity,
        of="kubernetes",
        default="128Gi",
        description="Memory limits of all sandboxes together: room for `maxRunning` at the usual 1,024 `memory_mib`.",
    )
    quota_pods: int = key(
        "quotaPods",
        values.whole(0, 1_000_000),
        of="kubernetes",
        default=500,
        description="Pods of sandboxes that have not ended.",
    )
    requester_namespaces: tuple[str, ...] = key_without_default(
        "requesterNamespaces",
        values.list_of(values.label),
        of="kubernetes",
        absent=(),
        shown="`[]`",
        description="Namespaces of applications that insert rows. They must exist before `up`, reach the database and"
        " the controllers' HTTP port, and get the requester's secret.",
    )
    monitoring_namespace: str | None = key_without_default(
        "monitoringNamespace",
        values.optional(values.label),
        of="kubernetes",
        absent=None,
        shown="none",
        description="The namespace that reaches metrics and health.",
    )
    api_server_cidrs: tuple[str, ...] = key_without_default(
        "apiServerCidrs",
        values.list_of(values.cidr),
        of="kubernetes",
        absent=ANYWHERE,
        shown='`["0.0.0.0/0"]`',
        description="The addresses of the API server behind its Service, on ports 443 and 6443. With `[]` you write"
        " that policy yourself, which Cilium needs if the API server runs on a node of the cluster (`toEntities:"
        " [kube-apiserver]`).",
    )
    egress_cidrs: tuple[str, ...] = key_without_default(
        "egressCidrs",
        values.list_of(values.reached),
        of="kubernetes",
        absent=ANYWHERE_BY_NAME,
        shown='`["0.0.0.0/0", "dns"]`',
        description="All that sandboxes with `network = egress` reach. A wide range excludes the internal ranges"
        " inside it; to allow one, name it exactly. If pods or nodes have public addresses, name narrower ranges."
        " `dns` is the cluster's resolver (pods `k8s-app: kube-dns` of `kube-system`, or `169.254.20.10`). Data can"
        " leave through a resolver to anywhere, so omit `dns` if the ranges are narrow.",
    )
    job_options: Mapping[str, Any] = key_without_default(
        "jobOptions",
        values.options,
        of="kubernetes",
        absent={},
        shown="`{}`",
        description="The value of `SANDBOX_JOB_OPTIONS`, an object with: `runtimeClassName`, `nodeSelector`,"
        " `tolerations`, `priorityClassName`, `imagePullSecrets`, `queue`.",
    )

    @property
    def name(self) -> str:
        """The text that fixed names begin with."""
        return f"{self.project}-{self.stack}"

    @property
    def builds(self) -> bool:
        """Whether an image is built here."""
        return self.app_image is None or self.sandbox_image is None

    @classmethod
    def read(cls, schema: Path = SCHEMA) -> Config:
        """The stack's configuration; `schema` is Pulumi.yaml. Raises ConfigError."""
        defaults = schema_defaults(schema)
        return _read(Reader(pulumi.get_project(), pulumi.get_stack(), KEYS.values(), defaults))


KEYS: Mapping[str, Key] = dict(declared_keys(Config))  # by the field's name


def _read(reader: Reader) -> Config:
    name = f"{reader.project}-{reader.stack}"
    found = {field: reader.get(key) for field, key in KEYS.items()}
    found["namespace"] = found["namespace"] or name
    found["sandbox_namespace"] = found["sandbox_namespace"] or f"{name}-sandboxes"
    found["create_limits"] = rules.create_limits(reader, found["create_limits"], found["create_namespaces"])
    config = Config(reader.project, reader.stack, **found)
    rules.check_together(reader, config, KEYS.values())
    reader.note_unknown()
    if reader.faults:
        raise ConfigError(
            f"the configuration of stack {reader.stack} cannot be used:\n  "
            + "\n  ".join(sorted(reader.faults))
            + f"\nset a key with: pulumi config set --stack {reader.stack} KEY VALUE"
        )
    return config
