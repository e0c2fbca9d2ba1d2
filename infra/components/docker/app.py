"""The controller as a Docker container, after the migration that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from infra.components.docker.containers import LOGGED, bounded
from infra.components.images import ENTRYPOINT, HTTP_PORT, STOP_SECONDS
from infra.components.passwords import secret
from infra.ending.docker import DockerEnd
from infra.ending.drain import Ending
from infra.ending.order import without_controllers
from infra.engine import LOOPBACK
from infra.waiting.engine import EngineWaits
from infra.waiting.readiness import once_ready

SOCKET = "/var/run/docker.sock"  # inside, where the controller looks
READY = f"""
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:{HTTP_PORT}/readyz", timeout=8)
except urllib.error.HTTPError as answer:
    sys.exit(answer.read().decode())
except OSError as error:
    sys.exit(str(error))
"""  # the check's output is the controller's own words


@dataclass(frozen=True)
class DockerAppArgs:
    """`settings` are the controller's. Without a `socket` there is no engine: commands run in the controller's own
    container. `after` is deleted only when no sandbox runs any more."""

    name: str
    image: pulumi.Input[str]
    network: pulumi.Input[str]
    owner_url: pulumi.Input[str]
    controller_url: pulumi.Input[str]
    controller_password: pulumi.Input[str]
    requester_password: pulumi.Input[str]
    database: pulumi.Input[str]  # another instance may be empty: it is migrated, and is another installation
    port: int  # the host's, on its loopback alone
    socket: str | None
    socket_group: int
    settings: Mapping[str, pulumi.Input[str]]
    waits: EngineWaits
    ending: Ending
    after: Sequence[pulumi.Resource]


class DockerApp(pulumi.ComponentResource):
    """A controller that is ready. `end` ends its sandboxes."""

    container: pulumi.Output[str]
    end: DockerEnd

    def __init__(self, name: str, args: DockerAppArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:DockerApp", name, None, opts)
        self._args = args
        self._child = pulumi.ResourceOptions(parent=self)
        self.end = DockerEnd(args.name, args.ending, self._drain())
        ended = without_controllers(self.end.drain_alone, args.after)
        migration = self._migration()
        started = {"name": migration.name, "id": migration.id}
        migrated = once_ready("migration", started, args.waits.ended_well, self._child)
        app = self._app([migrated, ended])
        ready = once_ready("app", {"name": app.name, "id": app.id}, args.waits.healthy, self._child)
        self.container = pulumi.Output.all(app.name, ready.id).apply(lambda known: str(known[0]))
        self.register_outputs({"container": self.container})

    def _migration(self) -> docker.Container:
        args = self._args
        return docker.Container(
            "migration",
            name=f"{args.name}-migration",
            image=args.image,
            entrypoints=ENTRYPOINT,
            command=["migrate"],
            envs=[
                secret("DATABASE_URL=", args.owner_url),
                secret("SANDBOX_CONTROLLER_PASSWORD=", args.controller_password),
                secret("SANDBOX_REQUESTER_PASSWORD=", args.requester_password),
            ],
            labels=[docker.ContainerLabelArgs(label="database", value=args.database)],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=args.network)],
            must_run=False,
            restart="no",
            **_hardened(),
            opts=self._child,
        )

    def _drain(self) -> pulumi.Output[Any] | None:
        """The body of a container that drains; None if commands end with the controller's own container."""
        args = self._args
        if args.socket is None:
            return None
        host: dict[str, Any] = {
            "NetworkMode": args.network,
            # Not Binds: they would create a directory for a socket that is not there.
            "Mounts": [{"Type": "bind", "Source": args.socket, "Target": SOCKET}],
            "GroupAdd": [str(args.socket_group)],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Memory": 512 << 20,
            "MemorySwap": 512 << 20,
        }
        body = {
            "Image": args.image,
            "Entrypoint": ENTRYPOINT,
            "Cmd": ["drain", "--timeout", str(args.ending.seconds)],
            "Env": self._environment(),
            "Tty": True,  # one stream of plain lines
            "HostConfig": host,
        }
        return pulumi.Output.from_input(body)

    def _app(self, after: Sequence[pulumi.Resource]) -> docker.Container:
        args = self._args
        return docker.Container(
            "app",
            name=f"{args.name}-app",
            image=args.image,
            entrypoints=ENTRYPOINT,
            command=["run"],
            labels=[docker.ContainerLabelArgs(label="database", value=args.database)],
            envs=self._environment(),
            ports=[docker.ContainerPortArgs(internal=HTTP_PORT, external=args.port, ip=LOOPBACK)],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=args.network)],
            volumes=self._volumes(),
            group_adds=[str(args.socket_group)] if args.socket else [],
            healthcheck=docker.ContainerHealthcheckArgs(
                tests=["CMD", "python", "-c", READY], interval="5s", timeout="10s", retries=12, start_period="15s"
            ),
            restart="unless-stopped",
            stop_timeout=STOP_SECONDS,
            destroy_grace_seconds=STOP_SECONDS,
            **_hardened(),
            opts=pulumi.ResourceOptions.merge(self._child, pulumi.ResourceOptions(depends_on=list(after))),
        )

    def _environment(self) -> list[pulumi.Output[str]]:
        settings = [pulumi.Output.concat(key, "=", value) for key, value in sorted(self._args.settings.items())]
        return [secret("DATABASE_URL=", self._args.controller_url), *settings]

    def _volumes(self) -> Sequence[docker.ContainerVolumeArgs]:
        if self._args.socket is None:
            return []
        return [docker.ContainerVolumeArgs(host_path=self._args.socket, container_path=SOCKET)]


def _hardened() -> dict[str, Any]:
    return {
        "capabilities": docker.ContainerCapabilitiesArgs(drops=["ALL"]),
        "security_opts": ["no-new-privileges:true"],
        **bounded(512),
        **LOGGED,
    }
