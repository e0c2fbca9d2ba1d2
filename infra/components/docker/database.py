"""Postgres as a Docker container, with a network and a volume of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pulumi
import pulumi_docker as docker

from infra.components.database_urls import DATABASE_NAME, OWNER, PORT, READY
from infra.components.docker.containers import LOGGED, bounded
from infra.components.passwords import secret
from infra.ending.docker import remove
from infra.engine import LOOPBACK
from infra.hooks import before_deletion, bound_to
from infra.waiting.engine import EngineWaits
from infra.waiting.readiness import once_ready

DATA = "/var/lib/postgresql/data"
STOP_SECONDS = 30  # without it the provider kills at once


@dataclass(frozen=True)
class DockerDatabaseArgs:
    """`name` begins every name on the engine; `port` is the host's, on its loopback alone."""

    name: str
    image: str
    password: pulumi.Input[str]
    port: int
    protect: bool
    waits: EngineWaits


class DockerDatabase(pulumi.ComponentResource):
    """A database that answers. `host` and `network` are for other containers. `instance` differs for each container,
    and so for each start that may be on an empty volume.
    """

    container: pulumi.Output[str]
    network: pulumi.Output[str]
    host: pulumi.Output[str]
    instance: pulumi.Output[str]

    def __init__(self, name: str, args: DockerDatabaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        theirs = partial(remove, *_containers(args.name), networks=[args.name])
        rest = before_deletion(
            "leftovers", theirs if args.protect else partial(theirs, volumes=[f"{args.name}-database"])
        )
        merged = pulumi.ResourceOptions.merge(opts, bound_to(rest))
        super().__init__("ci-fixer-sandbox:infra:DockerDatabase", name, None, merged)
        child = pulumi.ResourceOptions(parent=self)
        left = before_deletion("containers", partial(remove, *_containers(args.name)))
        joined = pulumi.ResourceOptions.merge(child, bound_to(left))
        # For this container alone: a replaced volume changes the database and its migration, and no controller.
        held = before_deletion("database-container", partial(remove, f"{args.name}-database"))
        kept = pulumi.ResourceOptions.merge(
            child, pulumi.ResourceOptions(protect=True) if args.protect else bound_to(held)
        )
        # The engine would take the volume that is there for the new one.
        kept = pulumi.ResourceOptions.merge(kept, pulumi.ResourceOptions(delete_before_replace=True))
        network = docker.Network("network", name=args.name, opts=joined)
        volume = docker.Volume("database-volume", name=f"{args.name}-database", opts=kept)
        image = docker.RemoteImage("database-image", name=args.image, keep_locally=True, opts=child)
        container = docker.Container(
            "database",
            name=f"{args.name}-database",
            image=image.image_id,
            envs=[
                f"POSTGRES_USER={OWNER}",
                f"POSTGRES_DB={DATABASE_NAME}",
                f"PGDATA={DATA}",  # from version 18 on the image's own is elsewhere
                secret("POSTGRES_PASSWORD=", args.password),
            ],
            volumes=[
                docker.ContainerVolumeArgs(volume_name=volume.name, container_path=DATA),
            ],
            ports=[docker.ContainerPortArgs(internal=PORT, external=args.port, ip=LOOPBACK)],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.name, aliases=["database"])],
            healthcheck=docker.ContainerHealthcheckArgs(
                tests=["CMD", *READY],
                interval="2s",
                timeout="5s",
                retries=30,
                start_period="0s",
            ),
            restart="unless-stopped",
            shm_size=256,
            stop_signal="SIGINT",  # a fast shutdown; SIGTERM would wait for clients to leave
            destroy_grace_seconds=STOP_SECONDS,
            **bounded(1024),
            **LOGGED,
            # A replaced volume has the same name, so the provider sees no change.
            opts=pulumi.ResourceOptions.merge(
                child, pulumi.ResourceOptions(replace_with=[volume], delete_before_replace=True)
            ),
        )
        self.network = network.name
        ready = once_ready("database", {"name": container.name, "id": container.id}, args.waits.healthy, child)
        self.host = ready.id.apply(lambda _: "database")  # known once it answers
        self.container = container.name
        self.instance = container.id
        self.register_outputs({"network": self.network, "host": self.host})


def _containers(name: str) -> list[str]:
    """The names of all containers of the stack, also of those that a killed `up` created and did not record."""
    return [f"{name}-{one}" for one in ("app", "migration", "drain", "database")]
