"""Whether DATABASE_URL can be read. What is wrong is told by the part's name and without its value: where a password is
not percent-encoded, any part may hold a piece of it."""

from __future__ import annotations

import re

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from controller.errors import SettingsError

INTEGERS = {"connect_timeout", "tcp_user_timeout", "keepalives", "keepalives_idle", "keepalives_interval"}
INTEGERS |= {"keepalives_count"}  # the driver passes over some of these without a word where they are none
ENCODE = "percent-encode it (@ is %40, / is %2F, % is %25, a space %20)"


def check_url(url: str) -> None:
    """Raises SettingsError where no connection can be tried with this URL."""
    fault = _fault(url)
    if fault is not None:
        raise SettingsError(f"DATABASE_URL {fault}")


def _fault(url: str) -> str | None:
    if not url.strip():
        return "is not set to the postgresql:// URL of the database with the queue"
    if url[0] in "'\" \t\r\n" or url[-1] in "'\" \t\r\n":
        return "begins or ends with a quote or a space: give the URL alone"
    if not url.startswith(("postgresql://", "postgres://")):
        return "is not a URL that begins with postgresql://"
    before, _, path = url.partition("://")[2].partition("/")
    login, _, hosts = before.rpartition("@")
    hosts, _, query = f"{hosts}/{path}".partition("?")
    if "@" in login or "@" in hosts:
        return f"has an unencoded @ or / in the user or the password: {ENCODE}"
    if re.search(r"\s", url):
        return f"has a space in it: {ENCODE}"
    for name, text in (("user or password", login), ("host or database", hosts), ("parameters", query)):
        if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
            return f"has an unencoded % in its {name}: {ENCODE}"
    return _parameters_fault(query) or _port_fault(url)


def _parameters_fault(query: str) -> str | None:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {"ssl"}
    for each in query.split("&") if query else ():
        name, _, value = each.partition("=")
        if each.count("=") != 1 or not name.isidentifier():
            return "has parameters that are not ?name=value&name=value"
        if name not in known:
            return f"has the parameter {name}, which a connection to Postgres does not have"
        if name in INTEGERS and not re.fullmatch(r"-?\d{1,9}", value):
            return f"has {name}={value}, which is not a whole number"
    return None


def _port_fault(url: str) -> str | None:
    try:
        ports = str(conninfo_to_dict(url).get("port") or "").split(",")
    except (psycopg.Error, UnicodeError):
        return f"cannot be read as postgresql://user:password@host:port/database: {ENCODE}"
    if not all(port == "" or (re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 65536) for port in ports):
        return "has a port, after a host's colon, that is not a number from 1 to 65,535"
    return None
