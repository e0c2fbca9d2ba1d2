"""The controller as a Docker container, after the migration that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_docker as docker

from infra.docker_containers import LOGGED, LOOPBACK, bounded
from infra.errors import MigrationFailed
from infra.images import ENTRYPOINT, HTTP_PORT, STOP_SECONDS
from infra.passwords import secret

SOCKET = "/var/run/docker.sock"  # inside, where the controller looks
READY = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{HTTP_PORT}/readyz', timeout=8)"


@dataclass(frozen=True)
class DockerAppArgs:
    """`settings` are the controller's; `socket` None: no engine, and so its own container is where commands run."""

    name: str
    image: pulumi.Input[str]
    network: pulumi.Input[str]
    owner_url: pulumi.Input[str]
    controller_url: pulumi.Input[str]
    controller_password: pulumi.Input[str]
    requester_password: pulumi.Input[str]
    port: int  # the host's, on its loopback alone
    socket: str | None
    socket_group: int
    settings: Mapping[str, pulumi.Input[str]]


class DockerApp(pulumi.ComponentResource):
    """A controller that is ready."""

    container: pulumi.Output[str]

    def __init__(self, name: str, args: DockerAppArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:DockerApp", name, None, opts)
        self._args = args
        migrated = self._migration()
        self.container = self._app(migrated).name
        self.register_outputs({"container": self.container})

    def _migration(self) -> pulumi.Output[int]:
        """Runs to its end while the stack comes up; its exit code, which is 0."""
        args = self._args
        name = f"{args.name}-migration"
        migration = docker.Container(
            "migration",
            name=name,
            image=args.image,
            entrypoints=ENTRYPOINT,
            command=["migrate"],
            envs=[
                secret("DATABASE_URL=", args.owner_url),
                secret("SANDBOX_CONTROLLER_PASSWORD=", args.controller_password),
                secret("SANDBOX_REQUESTER_PASSWORD=", args.requester_password),
            ],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=args.network)],
            attach=True,
            must_run=False,
            restart="no",
            **_hardened(),
            opts=pulumi.ResourceOptions(parent=self),
        )

        def succeeded(code: float | None) -> int:
            if code:
                again = (
                    f"mend it, then: docker rm {name} && pulumi up --stack {pulumi.get_stack()} --refresh --run-program"
                )
                raise MigrationFailed(
                    f"the migration failed (exit code {int(code)}): docker logs {name} says why; {again}"
                )
            return 0

        return migration.exit_code.apply(succeeded)

    def _app(self, migrated: pulumi.Output[int]) -> docker.Container:
        args = self._args
        # The URL waits for the exit code: depends_on would start the app after a migration that failed.
        url = pulumi.Output.all(args.controller_url, migrated).apply(lambda both: str(both[0]))
        settings = [pulumi.Output.concat(key, "=", value) for key, value in sorted(args.settings.items())]
        return docker.Container(
            "app",
            name=f"{args.name}-app",
            image=args.image,
            entrypoints=ENTRYPOINT,
            command=["run"],
            envs=[secret("DATABASE_URL=", url), *settings],
            ports=[docker.ContainerPortArgs(internal=HTTP_PORT, external=args.port, ip=LOOPBACK)],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=args.network)],
            volumes=self._volumes(),
            group_adds=[str(args.socket_group)] if args.socket else [],
            healthcheck=docker.ContainerHealthcheckArgs(
                tests=["CMD", "python", "-c", READY], interval="5s", timeout="10s", retries=12, start_period="15s"
            ),
            wait=True,
            wait_timeout=120,
            restart="unless-stopped",
            stop_timeout=STOP_SECONDS,
            destroy_grace_seconds=STOP_SECONDS,
            **_hardened(),
            opts=pulumi.ResourceOptions(parent=self),
        )

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
