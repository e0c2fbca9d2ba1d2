"""All SQL is in files, each statement named, explained and used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller.db import sql
from controller.protocol.model import Reason, State

ROOT = Path(sql.__file__).parent
FILES = ("queue.sql", "controllers.sql", "installation.sql", "client.sql")


def used(module: str) -> set[str]:
    source = (ROOT.parent / module).read_text()
    return set(re.findall(r"""(?:once|retried|_retried_ids|_batch)\(\s*"(\w+)\"""", source))


@pytest.mark.parametrize("file", FILES)
def test_every_block_is_one_statement(file: str) -> None:
    found = sql.statements(file)
    assert list(found) == re.findall(r"^-- (\w+) --$", (ROOT / file).read_text(), re.MULTILINE)
    for name, body in found.items():
        code = re.sub(r"--.*", "", re.sub(r"\$\$.*?\$\$", "", body, flags=re.DOTALL))
        assert re.sub(r"'[^']*'", "", code).count(";") == 1, name
        assert code.rstrip().endswith(";"), name


def test_every_statement_of_the_queue_says_first_what_it_does() -> None:
    for file in ("queue.sql", "controllers.sql"):
        assert [name for name, body in sql.statements(file).items() if not re.match(r"-- \S.*\S\n", body)] == []


def test_the_queue_uses_every_statement_and_no_other() -> None:
    assert used("store.py") == set(sql.statements("queue.sql"))


def test_the_registry_uses_every_statement_and_no_other() -> None:
    assert used("registry.py") == set(sql.statements("controllers.sql"))


def test_migrate_uses_every_statement_and_no_other() -> None:
    source = (ROOT.parent / "migrate.py").read_text()
    assert [name for name in sql.statements("roles.sql") if f'"{name}"' not in source] == []


def test_a_controller_calls_only_functions_with_a_version_in_their_name() -> None:
    """So that a changed one can stand beside the one that controllers of earlier versions call."""
    called = {"identify": sql.statements("installation.sql")["identify"]}
    called |= sql.statements("queue.sql") | sql.statements("controllers.sql")
    for name, body in called.items():
        functions = set(re.findall(r"sandbox_\w+(?=\()", re.sub(r"--.*", "", body))) - {"sandbox_now"}
        assert {function for function in functions if not re.search(r"_v\d+$", function)} == set(), name


def test_what_is_read_of_a_row_stands_once_and_in_every_statement_that_reads_rows() -> None:
    text, found = (ROOT / "queue.sql").read_text(), sql.statements("queue.sql")
    assert text.count("as cancelled") == 1
    assert {name for name, body in found.items() if "as cancelled" in body} == {
        *("claim", "take_over", "owned_rows", "rows"),
    }
    assert not [name for name, body in found.items() if "$" in body]


def test_no_sql_stands_in_python() -> None:
    allowed = {"listener.py", "migrate.py", "store.py"}  # connection set-up: listen, set, alter role, the advisory lock
    for path in ROOT.parents[1].rglob("*.py"):
        found = re.findall(r"""["'](?:select|insert into|update|delete from|with|alter|create) """, path.read_text())
        assert not found or path.name in allowed, (path, found)


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    steps = sql.migrations()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == len(list((ROOT / "migrations").iterdir()))


def test_min_code_version_is_stated_or_stays_and_is_never_ahead() -> None:
    oldest = 1
    for step in sql.migrations():
        assert oldest <= step.min_code_version <= step.version
        oldest = step.min_code_version


def test_min_code_version_is_read_from_the_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "migrations").mkdir()
    for name, text in {
        "0001_one.sql": "select 1;",
        "0002_two.sql": "-- min_code_version: 2\nselect 2;",
        "0003_three.sql": "select 3;\n-- min_code_version: 3\n",
        "notes.txt": "",
    }.items():
        (tmp_path / "migrations" / name).write_text(text)
    monkeypatch.setattr(sql, "files", lambda package: tmp_path)
    assert [(step.version, step.name, step.min_code_version) for step in sql.migrations()] == [
        (1, "one", 1),
        (2, "two", 2),
        (3, "three", 2),
    ]


def allowed(constraint: str) -> set[str]:
    """The values of a rule `column in (…)`, as the newest migration that makes the rule has them."""
    made = re.compile(rf'constraint "{constraint}"\s+check\s*\(\w+ in \((.*?)\)\)', re.DOTALL)
    schema = "\n".join(re.sub("--.*", "", step.sql) for step in sql.migrations())
    return set(re.findall(r"'(\w+)'", made.findall(schema)[-1]))


def test_the_schema_knows_every_state_and_reason_and_no_other() -> None:
    assert allowed("state must be a known one") == set(State)
    assert allowed("reason must be a known one") == set(Reason)


def test_a_rule_is_read_as_the_last_migration_that_made_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a reason can come by a new migration, and the migrations before it stay as they were released."""
    texts = (
        """create table it (reason text constraint "known" check (reason in (
            'Lost',  -- or 'Gone'
            'Killed')), state text constraint "other" check (state in ('queued')));""",
        """alter table it drop constraint "known", add constraint "known"
            check (reason in ('Lost', 'Killed', 'Preempted')) not valid;
        alter table it validate constraint "known";""",
        "select 'Nothing';",
    )
    steps = [sql.Migration(at, "it", text, 1) for at, text in enumerate(texts, 1)]
    for newest, known in ((1, {"Lost", "Killed"}), (3, {"Lost", "Killed", "Preempted"})):
        monkeypatch.setattr(sql, "migrations", lambda newest=newest: steps[:newest])
        assert allowed("known") == known
    assert allowed("other") == {"queued"}
