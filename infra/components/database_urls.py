"""How the database is reached: by which login, under which URL, and with a line that asks for a sandbox."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import pulumi

DATABASE_NAME = "sandbox"  # of those that a stack makes
OWNER, CONTROLLER, REQUESTER = "postgres", "sandbox_controller", "sandbox_requester"  # logins
PORT = 5432
# By TCP: while it makes its files the image's server listens on the socket alone.
READY = ["pg_isready", "--host", "127.0.0.1", "--username", OWNER, "--dbname", DATABASE_NAME]
REQUEST = "insert into sandboxes (command) values ('echo hello') returning id"


def database_url(
    login: str, password: pulumi.Input[str], host: pulumi.Input[str], port: int = PORT
) -> pulumi.Output[str]:
    """The URL with which a login reaches a stack's own database; secret."""
    url = pulumi.Output.all(password, host).apply(
        lambda known: f"postgresql://{_credentials(login, known[0])}@{known[1]}:{port}/{DATABASE_NAME}"
    )
    return pulumi.Output.secret(url)


def with_login(owner: pulumi.Output[str], login: str, password: pulumi.Output[str]) -> pulumi.Output[str]:
    """An existing database's URL for another login than its owner; secret."""

    def url(known: list[str]) -> str:
        parts = urlsplit(known[0])
        address = parts.netloc.rpartition("@")[2]
        query = "&".join(one for one in parts.query.split("&") if one.partition("=")[0] not in ("user", "password"))
        return parts._replace(netloc=f"{_credentials(login, known[1])}@{address}", query=query).geturl()

    return pulumi.Output.secret(pulumi.Output.all(owner, password).apply(url))


def _credentials(login: str, password: str) -> str:
    return f"{login}:{quote(password, safe='')}"


def psql(stack: str) -> str:
    """psql as the requester, by the stack's own output; holds no password."""
    return f'psql "$(pulumi stack output requester_database_url --show-secrets --stack {stack})"'


def example_request(client: str) -> str:
    """A line to paste that gets a sandbox, where this client is a psql that reaches the database."""
    return f'{client} --command "{REQUEST}"'
