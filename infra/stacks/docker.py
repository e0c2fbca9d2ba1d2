"""The stack on a Docker engine: a database, a controller, and sandboxes as their sibling containers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pulumi

from infra.components.database_urls import DatabaseEndpoints, example_request, psql
from infra.components.docker.app import DockerApp, DockerAppArgs
from infra.components.docker.database import DockerDatabase, DockerDatabaseArgs
from infra.components.images import Images, ImagesArgs
from infra.components.passwords import Passwords
from infra.config import Config
from infra.config.changes import whereabouts
from infra.ending.drain import Ending
from infra.ending.order import first_deleted
from infra.engine import LOOPBACK
from infra.waiting.engine import EngineWaits


def docker_stack(
    config: Config, platform: str, gate: pulumi.Resource, first: pulumi.ResourceOptions, waits: EngineWaits
) -> dict[str, pulumi.Input[Any]]:
    """Creates the stack behind its gate, and returns its outputs.

    `platform` is what images are built for; `first` are the options of the resource that only a new stack creates.
    """
    ending = Ending(config.stack, config.drain_seconds, config.protect_database)
    behind_gate = pulumi.ResourceOptions(depends_on=[gate])
    passwords = Passwords("passwords", config.database_password, pulumi.ResourceOptions.merge(behind_gate, first))
    opts = pulumi.ResourceOptions(depends_on=[gate, passwords])
    images = Images("images", ImagesArgs(config.stack, config.app_image, config.sandbox_image, platform=platform), opts)
    database = DockerDatabase(
        "database",
        DockerDatabaseArgs(
            name=config.name,
            image=config.postgres_image,
            password=passwords.owner,
            port=config.database_port,
            protect=config.protect_database,
            waits=waits,
        ),
        opts,
    )
    inside = DatabaseEndpoints.own(passwords, database.host)
    app = DockerApp(
        "app",
        DockerAppArgs(
            name=config.name,
            image=images.app,
            network=database.network,
            owner_url=inside.owner,
            controller_url=inside.controller,
            controller_password=passwords.controller,
            requester_password=passwords.requester,
            database=database.instance,
            port=config.http_port,
            socket=config.docker_socket,
            socket_group=_socket_group(config),
            settings=_settings(config, images.sandbox),
            waits=waits,
            ending=ending,
            after=[database],
        ),
        opts,
    )
    first_deleted(ending, app, app.end.drain, whereabouts(config))

    outside = DatabaseEndpoints.own(passwords, LOOPBACK, config.database_port)
    return {
        "database_url": outside.owner,
        "requester_database_url": outside.requester,
        "database_host": f"{LOOPBACK}:{config.database_port}",
        "health_url": f"http://{LOOPBACK}:{config.http_port}/healthz",
        "metrics_url": f"http://{LOOPBACK}:{config.http_port}/metrics",
        "app_image": images.app,
        "sandbox_image": images.sandbox,
        "app_container": app.container,
        "database_container": database.container,
        "example_request": example_request(psql(config.stack)),
    }


def _settings(config: Config, sandbox_image: pulumi.Output[str]) -> dict[str, pulumi.Input[str]]:
    """The controller's settings."""
    settings: dict[str, pulumi.Input[str]] = {"SANDBOX_MAX_RUNNING": str(config.max_running)}
    if config.docker_socket is None:
        return settings | {"SANDBOX_BACKEND": "process", "SANDBOX_WORK_DIR": "/tmp/sandboxes"}
    return settings | {"SANDBOX_BACKEND": "docker", "SANDBOX_IMAGE": sandbox_image}


def _socket_group(config: Config) -> int:
    """The group that owns the engine's socket. With Docker of another system than Linux that is root's."""
    if config.docker_socket is None or config.docker_socket_group is not None:
        return config.docker_socket_group or 0
    socket = Path(config.docker_socket)
    return socket.stat().st_gid if sys.platform == "linux" and socket.is_socket() else 0
