"""The URLs by which each login reaches the database, and a command line that inserts a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

import pulumi

from infra.components.passwords import Passwords

DATABASE_NAME = "sandbox"  # of the database that a stack makes
OWNER, CONTROLLER, REQUESTER = "postgres", "sandbox_controller", "sandbox_requester"  # logins
PORT = 5432
# By TCP: while it creates its files the image's server listens on the socket alone.
READY = ["pg_isready", "--host", "127.0.0.1", "--username", OWNER, "--dbname", DATABASE_NAME]
REQUEST = "insert into sandboxes (command) values ('echo hello') returning id"


@dataclass(frozen=True)
class DatabaseEndpoints:
    """One database's address, and the URL of each login; the URLs are secret."""

    owner: pulumi.Output[str]
    controller: pulumi.Output[str]
    requester: pulumi.Output[str]
    host: pulumi.Output[str]
    port: pulumi.Output[int]

    @classmethod
    def own(cls, passwords: Passwords, host: pulumi.Input[str], port: int = PORT) -> Self:
        """The endpoints of the stack's own database at this address."""

        def url(login: str, password: pulumi.Output[str]) -> pulumi.Output[str]:
            return pulumi.Output.secret(
                pulumi.Output.all(password, host).apply(
                    lambda known: f"postgresql://{_credentials(login, known[0])}@{known[1]}:{port}/{DATABASE_NAME}"
                )
            )

        return cls(
            owner=url(OWNER, passwords.owner),
            controller=url(CONTROLLER, passwords.controller),
            requester=url(REQUESTER, passwords.requester),
            host=pulumi.Output.from_input(host),
            port=pulumi.Output.from_input(port),
        )

    @classmethod
    def existing(cls, owner: pulumi.Output[str], passwords: Passwords) -> Self:
        """The endpoints of an existing database, from its owner's URL."""

        def url(login: str, password: pulumi.Output[str]) -> pulumi.Output[str]:
            changed = pulumi.Output.all(owner, password).apply(lambda known: _with_login(known[0], login, known[1]))
            return pulumi.Output.secret(changed)

        return cls(
            owner=owner,
            controller=url(CONTROLLER, passwords.controller),
            requester=url(REQUESTER, passwords.requester),
            host=pulumi.Output.unsecret(owner.apply(lambda known: str(urlsplit(known).hostname))),
            port=pulumi.Output.unsecret(owner.apply(lambda known: urlsplit(known).port or PORT)),
        )


def _with_login(url: str, login: str, password: str) -> str:
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    query = "&".join(one for one in parts.query.split("&") if one.partition("=")[0] not in ("user", "password"))
    return parts._replace(netloc=f"{_credentials(login, password)}@{address}", query=query).geturl()


def _credentials(login: str, password: str) -> str:
    return f"{login}:{quote(password, safe='')}"


def psql(stack: str) -> str:
    """The command line of psql as the requester, by the stack's own output; it holds no password."""
    return f'psql "$(pulumi stack output requester_database_url --show-secrets --stack {stack})"'


def example_request(client: str) -> str:
    """A command line that inserts a row; `client` is one of a psql that reaches the database."""
    return f'{client} --command "{REQUEST}"'
