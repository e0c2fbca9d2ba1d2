"""A bad request is refused at insert, with the column and the rule; no row breaks the state machine."""

from __future__ import annotations

from itertools import product
from uuid import UUID, uuid4

import psycopg
import pytest

from controller.protocol.model import State
from tests.support.corpus import NUMBERS, REFUSED, TAKEN
from tests.support.database import Connection, at, clock, connect, insert, one, row

ROLES = pytest.mark.parametrize("role", ["sandbox_requester", None], ids=["requester", "owner"])


@ROLES
def test_a_bad_request_is_refused_with_its_column_and_rule(role: str | None, database: str) -> None:
    with connect(database, role) as connection:
        for column, value, rule in REFUSED:
            shown = f"{column} = {str(value)[:60]!r}"
            assert rule in refusal(connection, column, value), shown
        assert one(connection, "select count(*) as n from sandboxes")["n"] == 0


def refusal(connection: Connection, column: str, value: object) -> str:
    try:
        insert(connection, **{column: value})
    except psycopg.Error as error:
        return str(error)
    return "it was taken"


@ROLES
def test_an_odd_request_is_taken_and_comes_back_byte_for_byte(role: str | None, database: str) -> None:
    with connect(database, role) as connection:
        for column, value in TAKEN:
            made = insert(connection, **{column: value})
            found = row(connection, made)[column]
            assert str(found) == str(value) or column == "env", (column, value)


def test_text_with_nul_is_refused(owner: Connection) -> None:
    for column in ("command", "image", "tenant", "idempotency_key"):
        with pytest.raises(psycopg.DataError, match="NUL"):
            insert(owner, **{column: "a\0b"})
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire, match="0x00"):  # by a client that does not look
            owner.execute(f"insert into sandboxes ({column}) values (convert_from('\\x610062', 'UTF8'))")


def test_deep_json_is_refused_and_harms_nobody(owner: Connection) -> None:
    deep = '{"A": ' + "[" * 200_000 + "]" * 200_000 + "}"
    with pytest.raises(psycopg.Error, match=r"stack depth limit exceeded|env"):
        insert(owner, env=deep)
    insert(owner)


def test_a_number_too_large_for_any_column_still_says_which_type(owner: Connection) -> None:
    for column in NUMBERS:
        with pytest.raises(psycopg.Error) as caught:
            owner.execute(f"insert into sandboxes (command, {column}) values ('x', 'NaN'::float8)")
        assert "bigint" in str(caught.value)


def test_an_id_can_be_given_once(owner: Connection) -> None:
    given = uuid4()
    assert insert(owner, id=given) == given
    with pytest.raises(psycopg.errors.UniqueViolation, match="sandboxes_pkey"):
        insert(owner, id=given)


def test_an_idempotency_key_is_unique_per_tenant(owner: Connection) -> None:
    insert(owner, idempotency_key="k")
    insert(owner, idempotency_key="k", tenant="other")
    insert(owner)
    insert(owner)
    with pytest.raises(psycopg.errors.UniqueViolation, match="idempotency_key must be unique per tenant"):
        insert(owner, idempotency_key="k")
    again = "insert into sandboxes (command, idempotency_key) values ('x', 'k') on conflict"
    assert owner.execute(f"{again} (tenant, idempotency_key) do nothing").rowcount == 0


def test_a_request_commits_with_its_callers_transaction(owner: Connection) -> None:
    with owner.transaction(force_rollback=True):
        made = insert(owner)
    assert owner.execute("select from sandboxes where id = %s", [made]).rowcount == 0


def test_limits_of_a_tenant_are_checked(owner: Connection) -> None:
    for values, rule in {
        "('t', -1, 1)": "max_running must be at least 0",
        "('t', 0, 0)": "weight must be over 0 and at most 1,000",
        "('t', 0, 1001)": "weight must be over 0",
        "('t', 0, 'NaN')": "weight must be over 0",
    }.items():
        with pytest.raises(psycopg.errors.CheckViolation, match=rule):
            owner.execute(f"insert into sandbox_tenants (name, max_running, weight) values {values}")


# The state machine

TERMINAL = [state for state in State if state.terminal]
LEGAL = {
    State.QUEUED: {State.LAUNCHING, State.CANCELLED},
    State.LAUNCHING: set(State) - {State.LAUNCHING},
    State.RUNNING: set(State) - {State.LAUNCHING, State.RUNNING},
} | {state: set[State]() for state in TERMINAL}


def put(connection: Connection, state: State) -> UUID:
    """A row that got into this state, however."""
    made = insert(connection)
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")
        move(connection, made, state)
    return made


def move(connection: Connection, sandbox_id: UUID, state: State) -> None:
    connection.execute(
        "update sandboxes set state = %s, reason = case when %s then 'Lost' end,"
        " finished_at = case when %s then sandbox_now() end where id = %s",
        [state, state.terminal, state.terminal, sandbox_id],
    )


def test_only_the_protocols_transitions_are_possible(owner: Connection) -> None:
    for before, after in product(State, State):
        made = put(owner, before)
        if after in LEGAL[before]:
            move(owner, made, after)
        elif after is not before:
            rule = (
                "a terminal state is written once" if before.terminal else "no step of the protocol leads to this state"
            )
            with pytest.raises(psycopg.errors.CheckViolation, match=rule) as caught:
                move(owner, made, after)
            assert str(made) in str(caught.value)


def test_a_terminal_state_is_written_once(owner: Connection) -> None:
    clock(owner, 0)
    for state in TERMINAL:
        check_written_once(owner, put(owner, state), state)


def check_written_once(owner: Connection, made: UUID, state: State) -> None:
    changes = {
        "state": "'failed'" if state is State.LOST else "'lost'",
        "reason": "'Killed'",
        "message": "'x'",
        "exit_code": "1",
        "run_uid": "'x'",
        "attempt": "2",
        "finished_at": "sandbox_now() + interval '1 second'",
    }
    for column, value in changes.items():
        with pytest.raises(psycopg.errors.CheckViolation, match="a terminal state is written once"):
            owner.execute(f"update sandboxes set {column} = {value} where id = %s", [made])
    with pytest.raises(psycopg.errors.CheckViolation, match="a terminal state is written once"):
        owner.execute("update sandboxes set state = 'queued', finished_at = null, reason = null where id = %s", [made])
    owner.execute("update sandboxes set cleaned_at = sandbox_now() where id = %s", [made])
    assert row(owner, made)["cleaned_at"] == at(0)


def test_finished_at_is_set_if_and_only_if_the_state_is_terminal(owner: Connection) -> None:
    for state in State:
        wrong = "null" if state.terminal else "now()"
        with pytest.raises(psycopg.errors.CheckViolation, match="finished_at is set if and only if"):
            owner.execute(
                f"insert into sandboxes (command, state, reason, finished_at) values ('x', %s, 'Lost', {wrong})",
                [state],
            )


def test_a_terminal_state_has_a_reason_of_the_closed_list(owner: Connection) -> None:
    for value, rule in {"null": "a terminal state has a reason", "'Odd'": "reason must be a known one"}.items():
        with pytest.raises(psycopg.errors.CheckViolation, match=rule):
            owner.execute(
                f"insert into sandboxes (command, state, finished_at, reason) values ('x', 'lost', now(), {value})"
            )
    with pytest.raises(psycopg.errors.CheckViolation, match="cleaned_at comes after finished_at"):
        owner.execute("insert into sandboxes (command, cleaned_at) values ('x', now())")
    with pytest.raises(psycopg.errors.CheckViolation, match="state must be a known one"):
        owner.execute("insert into sandboxes (command, state) values ('x', 'paused')")


def test_a_request_cannot_be_changed(owner: Connection) -> None:
    made = insert(owner, idempotency_key="k", image="a")
    changes = {
        "id": "gen_random_uuid()",
        "command": "'y'",
        "image": "null",
        "env": """'{"A": "1"}'""",
        "network": "'egress'",
        "tenant": "'t'",
        "idempotency_key": "null",
        "created_at": "now()",
    } | {column: f"{column} + 1" for column in NUMBERS}
    for column, value in changes.items():
        with pytest.raises(psycopg.errors.CheckViolation, match="a request cannot be changed once it is inserted"):
            owner.execute(f"update sandboxes set {column} = {value} where id = %s", [made])
    owner.execute("update sandboxes set command = command where id = %s", [made])


def test_cancel_cannot_be_taken_back_and_asking_twice_is_fine(owner: Connection) -> None:
    for made in [put(owner, state) for state in State]:
        for second in (1, 2):
            clock(owner, second)
            owner.execute("update sandboxes set cancel_requested_at = sandbox_now() where id = %s", [made])
            assert row(owner, made)["cancel_requested_at"] == at(1)
        with pytest.raises(psycopg.errors.CheckViolation, match="cancel_requested_at cannot be taken back"):
            owner.execute("update sandboxes set cancel_requested_at = null where id = %s", [made])
