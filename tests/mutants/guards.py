"""The protocol's guards, and for each the test that must fail if it is removed."""

from __future__ import annotations

from dataclasses import dataclass

STATEMENTS = "controller/db/sql/queue.sql"
DECIDE = "controller/protocol/decide.py"
RESYNC = "controller/reconcile/resync.py"
WRITES = "tests/integration/test_writes.py"
CLAIM = "tests/integration/test_claim.py"
RESYNC_TESTS = "tests/unit/test_resync.py"


@dataclass(frozen=True)
class Guard:
    """A guard: the text that implements it, what replaces the text to remove it, and the node id of its test."""

    promise: str
    path: str
    text: str
    replacement: str
    test: str


GUARDS = (
    Guard(
        "bind is fenced by the epoch: a claim that was taken over binds nothing",
        STATEMENTS,
        "    where s.id = w.id and s.attempt = w.attempt and s.epoch = w.epoch and s.state = 'launching'\n"
        "      and s.cancel_requested_at is null and (s.run_uid",
        "    where s.id = w.id and s.attempt = w.attempt and s.state = 'launching'\n"
        "      and s.cancel_requested_at is null and (s.run_uid",
        f"{WRITES}::test_bind_needs_attempt_epoch_state_no_cancel_and_no_other_run",
    ),
    Guard(
        "bind is a compare-and-set of run_uid: an attempt has one run",
        STATEMENTS,
        "and s.cancel_requested_at is null and (s.run_uid is null or s.run_uid = w.run_uid)",
        "and s.cancel_requested_at is null",
        f"{WRITES}::test_bind_needs_attempt_epoch_state_no_cancel_and_no_other_run",
    ),
    Guard(
        "a row whose cancel was requested is not bound",
        STATEMENTS,
        "and s.cancel_requested_at is null and (s.run_uid is null or",
        "and (s.run_uid is null or",
        f"{WRITES}::test_bind_needs_attempt_epoch_state_no_cancel_and_no_other_run",
    ),
    Guard(
        "a lease is renewed under its epoch alone",
        STATEMENTS,
        "on s.id = w.id and s.epoch = w.epoch and s.state = 'launching'",
        "on s.id = w.id and s.state = 'launching'",
        f"{CLAIM}::test_a_lease_is_prolonged_only_under_its_epoch",
    ),
    Guard(
        "requeue is fenced by the epoch: only the lease's holder knows that an attempt never started",
        STATEMENTS,
        "and s.state in ('launching', 'running') and s.cancel_requested_at is null\n"
        "      and s.epoch = coalesce(w.epoch, s.epoch)",
        "and s.state in ('launching', 'running') and s.cancel_requested_at is null",
        f"{WRITES}::test_again_of_what_never_started_counts_nothing_and_its_deadline_runs_on",
    ),
    Guard(
        "the end of an unbound row is recorded by its lease's holder alone",
        STATEMENTS,
        "             and (s.run_uid is not null or s.epoch = coalesce(w.epoch, s.epoch))\n",
        "",
        f"{WRITES}::test_who_lost_its_lease_does_not_end_what_another_engine_has_by_now",
    ),
    Guard(
        "the first outcome counts: a row that has ended is not recorded again",
        STATEMENTS,
        "             and s.state in ('launching', 'running')\n",
        "",
        f"{WRITES}::test_record_needs_attempt_and_run_and_the_first_one_wins",
    ),
    Guard(
        "only a bound run is released",
        DECIDE,
        "return actions.Bind(run) if row.run_uid is None else actions.Release(run)",
        "return actions.Release(run)",
        "tests/unit/test_decide.py::test_each_line_of_the_protocol[bind what was made]",
    ),
    Guard(
        "only the lease's holder releases",
        DECIDE,
        "    if not context.holds_lease:  # the lease's holder may be about to release it\n"
        "        return actions.Wait()\n",
        "",
        "tests/unit/test_decide.py::test_each_line_of_the_protocol[do not release in other hands]",
    ),
    Guard(
        "a command starts once: the wrapper runs nothing if the state file is not empty",
        "controller/backends/guest/wrapper.sh",
        'if [ ! -f "$1" ] || [ -s "$1" ]; then',
        'if [ ! -f "$1" ]; then',
        "tests/unit/test_wrapper_start.py::test_a_start_needs_an_empty_state_file[started before]",
    ),
    Guard(
        "a process starts once: its supervisor must win the rename",
        "controller/backends/process/supervisor.py",
        "        os.rename(run_files.INERT, run_files.STARTED)\n",
        "        os.path.exists(run_files.INERT) and os.rename(run_files.INERT, run_files.STARTED)\n",
        "tests/integration/test_supervisor.py"
        "::test_paused_before_any_line_it_starts_nothing_that_others_started_or_removed[released]",
    ),
    Guard(
        "the sweep deletes a stray at the second look",
        RESYNC,
        "await self._sweep({key: uids for key, uids in strays.items() if key in self._strays})",
        "await self._sweep(strays)",
        f"{RESYNC_TESTS}::test_a_stray_is_deleted_at_the_second_look",
    ),
    Guard(
        "a run is missing only after a whole grace without a trace",
        RESYNC,
        "return begun - self._missing.setdefault((row.key, row.run_uid), read) >= self._grace",
        "return True",
        f"{RESYNC_TESTS}::test_a_run_is_missing_only_after_a_whole_grace",
    ),
    Guard(
        "claims take turns, so that no limit is exceeded",
        "controller/db/sql/migrations/0003_own_names_and_rights.sql",
        "    lock table public.sandbox_claim_turn in exclusive mode;\n",
        "",
        f"{CLAIM}::test_claims_take_turns",
    ),
    Guard(
        "a key that is added while it is processed is dirty: news is never lost",
        "controller/reconcile/workqueue.py",
        "            self._dirty.add(key)\n",
        "            pass\n",
        "tests/unit/test_workqueue.py"
        "::test_whatever_comes_while_a_key_is_processed_is_one_more_time_and_not_at_the_same_time",
    ),
)
