"""The stack on a Docker engine: a database, a controller, and sandboxes as their sibling containers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pulumi

from infra.config import Config
from infra.docker_app import DockerApp, DockerAppArgs
from infra.docker_database import DATABASE, LOOPBACK, OWNER, DockerDatabase, DockerDatabaseArgs
from infra.images import Images, ImagesArgs
from infra.passwords import Passwords, database_url

REQUEST = "insert into sandboxes (command) values ('echo hello') returning id"


def dev(config: Config) -> dict[str, pulumi.Input[Any]]:
    """Makes it all; returns the stack's outputs."""
    images = Images("images", ImagesArgs(config.stack, config.app_image, config.sandbox_image))
    passwords = Passwords("passwords", config.database_password)
    args = DockerDatabaseArgs(
        config.name, config.postgres_image, passwords.owner, config.database_port, config.protect_database
    )
    database = DockerDatabase("database", args)

    def inside(login: str, password: pulumi.Input[str]) -> pulumi.Output[str]:
        return database_url(login, password, database.host, 5432, DATABASE)

    def outside(login: str, password: pulumi.Input[str]) -> pulumi.Output[str]:
        return database_url(login, password, LOOPBACK, config.database_port, DATABASE)

    app = DockerApp(
        "app",
        DockerAppArgs(
            name=config.name,
            image=images.app,
            network=database.network,
            owner_url=inside(OWNER, passwords.owner),
            controller_url=inside("sandbox_controller", passwords.controller),
            passwords={"controller": passwords.controller, "requester": passwords.requester},
            port=config.http_port,
            socket=config.docker_socket,
            socket_group=_group(config),
            settings=_settings(config, images.sandbox),
        ),
    )
    psql = f'psql "$(pulumi stack output requester_database_url --show-secrets --stack {config.stack})"'
    return {
        "database_url": outside(OWNER, passwords.owner),
        "requester_database_url": outside("sandbox_requester", passwords.requester),
        "database_host": f"{LOOPBACK}:{config.database_port}",
        "health_url": f"http://{LOOPBACK}:{config.http_port}/healthz",
        "metrics_url": f"http://{LOOPBACK}:{config.http_port}/metrics",
        "app_image": images.app,
        "sandbox_image": images.sandbox,
        "app_container": app.container,
        "database_container": database.container,
        "example_request": f'{psql} --command "{REQUEST}"',
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
    if config.docker_socket_group is not None:
        return config.docker_socket_group
    socket = Path(config.docker_socket or "")
    return socket.stat().st_gid if sys.platform == "linux" and socket.is_socket() else 0
