"""A DATABASE_URL that cannot be used is told in one sentence: the variable, the part, and nothing of a password."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.db.pool import connect, connect_async
from controller.db.url import check_url
from controller.errors import DatabaseUnavailableError, SettingsError

HOST = "postgresql://u:s3cr3t@127.0.0.1:1/x"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "is not set"),
        ("  ", "is not set"),
        (f'"{HOST}"', "begins or ends with a quote or a space"),
        (f"'{HOST}'", "begins or ends with a quote or a space"),
        (f"{HOST}\n", "begins or ends with a quote or a space"),
        (f" {HOST}", "begins or ends with a quote or a space"),
        ("s3cr3t", "is not a URL that begins with postgresql://"),
        ("host=h password=s3cr3t", "is not a URL that begins with postgresql://"),
        ("mysql://u:s3cr3t@h/x", "is not a URL that begins with postgresql://"),
        ("postgresql+psycopg://u:s3cr3t@h/x", "is not a URL that begins with postgresql://"),
        ("postgresql://u:s3@cr3t@h/x", "has an unencoded @ or / in the user or the password"),
        ("postgresql://u:s3/cr3t@h/x", "has an unencoded @ or / in the user or the password"),
        ("postgresql://u:s3 cr3t@h/x", "has a space in it"),
        ("postgresql://u:s3cr3t%@h/x", "has an unencoded % in its user or password"),
        ("postgresql://u:s3cr3t%zz@h/x", "has an unencoded % in its user or password"),
        ("postgresql://u:s3cr3t%00@h/x", "has an unencoded % in its user or password"),
        ("postgresql://u@h/x%", "has an unencoded % in its host or database"),
        ("postgresql://u@h/x?options=%", "has an unencoded % in its parameters"),
        ("postgresql://u:s3cr3t@h:5432x/x", "has a port, after a host's colon, that is not a number from 1 to 65,535"),
        ("postgresql://u:s3cr3t@h:0/x", "has a port, after a host's colon, that is not a number from 1 to 65,535"),
        (
            "postgresql://u:s3cr3t@h,g:65536/x",
            "has a port, after a host's colon, that is not a number from 1 to 65,535",
        ),
        ("postgresql://u:s3cr3t/x", "has a port, after a host's colon, that is not a number from 1 to 65,535"),
        ("postgresql://u:s3cr3t@h/x?port=99999", "has a port, after a host's colon, that is not a number"),
        ("postgresql://u:s3cr3t@[::1/x", "cannot be read as postgresql://user:password@host:port/database"),
        (f"{HOST}?foo=bar", "has the parameter foo, which a connection to Postgres does not have"),
        (f"{HOST}?pasword=s3cr3t", "has the parameter pasword, which"),
        (f"{HOST}?sslmode", "has parameters that are not ?name=value&name=value"),
        (f"{HOST}?sslmode=a=b", "has parameters that are not ?name=value&name=value"),
        (f"{HOST}?&sslmode=require", "has parameters that are not ?name=value&name=value"),
        (f"{HOST}?connect_timeout=abc", "has connect_timeout=abc, which is not a whole number"),
        (f"{HOST}?tcp_user_timeout=1s", "has tcp_user_timeout=1s, which is not a whole number"),
        (f"{HOST}?sslmode=sometimes", 'cannot be used: invalid sslmode value: "sometimes"'),
        (f"{HOST}?target_session_attrs=best", 'cannot be used: invalid target_session_attrs value: "best"'),
        (f"{HOST}?gssencmode=x", 'cannot be used: invalid gssencmode value: "x"'),
        (f"{HOST}?ssl_min_protocol_version=x", 'cannot be used: invalid "ssl_min_protocol_version" value: "x"'),
        (f"{HOST}?service=nowhere", 'cannot be used: definition of service "nowhere" not found'),
    ],
)
def test_what_is_wrong_is_told_by_its_name(url: str, told: str) -> None:
    async def other() -> None:
        await (await connect_async(url, "test")).close()

    for call in (lambda: connect(url, "test"), lambda: asyncio.run(other())):
        with pytest.raises((SettingsError, DatabaseUnavailableError)) as caught:
            call()
        words = str(caught.value)
        assert words.startswith(f"DATABASE_URL {told}")
        assert "\n" not in words
        assert "cr3t" not in words


@pytest.mark.parametrize(("variable", "parameter"), [("PGSSLMODE", "sslmode"), ("PGGSSENCMODE", "gssencmode")])
def test_a_parameter_that_the_environment_has_is_told_by_its_variable(
    variable: str, parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(
        DatabaseUnavailableError, match=f"^{variable} of the environment cannot be used: invalid {parameter}"
    ):
        connect(HOST, "test")
    with pytest.raises(DatabaseUnavailableError, match=f"^DATABASE_URL cannot be used: invalid {parameter}"):
        connect(f"{HOST}?{parameter}=always", "test")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (HOST, "host and port"),
        ("postgresql://u:s3cr3t@127.0.0.1:1,127.0.0.1:2/x", "host and port"),
        ("postgresql://u:s3cr3t@/x?host=/nowhere", "host and port"),
        ("postgresql://u:s3cr3t@no.such.host.invalid/x", "host"),
    ],
)
def test_a_server_that_is_not_there_is_told_with_the_part_to_look_at(url: str, part: str) -> None:
    with pytest.raises(DatabaseUnavailableError) as caught:
        connect(url, "test")
    words = str(caught.value)
    assert words.startswith("the database of DATABASE_URL does not answer, or refuses this login: ")
    assert words.endswith(f"; look at its {part}")
    assert "\n" not in words
    assert "cr3t" not in words


@pytest.mark.parametrize(
    "url",
    [
        HOST,
        "postgres://u@h/x",
        "postgresql://",
        "postgresql:///x?host=/run/postgresql&user=u",
        "postgresql://u:@/x?host=/tmp/a%20b",
        "postgresql://u:p%40ss%2Fw%25rd@h:5432/x",
        "postgresql://u:p?w#d:x@h/x",
        "postgresql://u@[::1]:5432,h2/x?target_session_attrs=read-write",
        "postgresql://h1:1,h2:2,h3/x?load_balance_hosts=random&ssl=true",
        "postgresql://u@h/x?options=-c%20role%3Dr&application_name=mine&connect_timeout=3&keepalives=1",
    ],
)
def test_a_url_that_can_be_used_is_left_alone(url: str) -> None:
    check_url(url)


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_no_url_whatever_raises_anything_else(text: str) -> None:
    with suppress(SettingsError):
        check_url(f"postgresql://{text}")
