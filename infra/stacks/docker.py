"""The stack on a Docker engine: a database, a controller, and sandboxes as their sibling containers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pulumi

from infra.components.database_urls import CONTROLLER, OWNER, REQUESTER, database_url, example_request, psql
from infra.components.docker.app import DockerApp, DockerAppArgs
from infra.components.docker.containers import LOOPBACK
from infra.components.docker.database import DockerDatabase, DockerDatabaseArgs
from infra.components.images import Images, ImagesArgs
from infra.components.passwords import Passwords
from infra.config import Config
from infra.config.changes import whereabouts
from infra.ending.hooks import Ending, first_deleted
from infra.waiting.engine import EngineWaits


def dev(
    config: Config, platform: str, passed: pulumi.Resource, first: pulumi.ResourceOptions, waits: EngineWaits
) -> dict[str, pulumi.Input[Any]]:
    """Makes it all, after what it has to pass; returns the stack's outputs. `first`: what a new stack has to pass;
    `platform`: what is built for."""
    after = pulumi.ResourceOptions(depends_on=[passed])
    passwords = Passwords("passwords", config.database_password, pulumi.ResourceOptions.merge(after, first))
    after = pulumi.ResourceOptions(depends_on=[passed, passwords])
    images = Images(
        "images", ImagesArgs(config.stack, config.app_image, config.sandbox_image, platform=platform), after
    )
    args = DockerDatabaseArgs(
        config.name, config.postgres_image, passwords.owner, config.database_port, config.protect_database, waits
    )
    database = DockerDatabase("database", args, after)

    ending = Ending(config.stack, config.drain_seconds, config.protect_database)
    app = DockerApp(
        "app",
        DockerAppArgs(
            name=config.name,
            image=images.app,
            network=database.network,
            owner_url=database_url(OWNER, passwords.owner, database.host),
            controller_url=database_url(CONTROLLER, passwords.controller, database.host),
            controller_password=passwords.controller,
            requester_password=passwords.requester,
            database=database.made,
            port=config.http_port,
            socket=config.docker_socket,
            socket_group=_group(config),
            settings=_settings(config, images.sandbox),
            waits=waits,
            ending=ending,
            after=[database],
        ),
        after,
    )
    first_deleted(ending, app, app.end.drain, whereabouts(config))
    return {
        "database_url": database_url(OWNER, passwords.owner, LOOPBACK, config.database_port),
        "requester_database_url": database_url(REQUESTER, passwords.requester, LOOPBACK, config.database_port),
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
    settings: dict[str, pulumi.Input[str]] = {"SANDBOX_MAX_RUNNING": str(config.max_running)}
    if config.docker_socket is None:
        settings |= {"SANDBOX_BACKEND": "process", "SANDBOX_WORK_DIR": "/tmp/sandboxes"}
    else:
        settings |= {"SANDBOX_BACKEND": "docker", "SANDBOX_IMAGE": sandbox_image}
    return settings


def _group(config: Config) -> int:
    """The group that owns the socket where the engine is. Behind another system's Docker it is root's."""
    if config.docker_socket is None or config.docker_socket_group is not None:
        return config.docker_socket_group or 0
    socket = Path(config.docker_socket)
    return socket.stat().st_gid if sys.platform == "linux" and socket.is_socket() else 0
