"""How large: a claim from a million rows, and a controller with ten thousand sandboxes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

import psutil
import psycopg

from controller.db import sql
from tests.bench.report import Figure, ms
from tests.bench.support import fresh

FILL = """
insert into sandboxes (command, tenant, priority, state, reason, finished_at, cleaned_at)
select 'echo hi', 't' || i %% %(tenants)s, i %% 7, case when i <= %(finished)s then 'succeeded' else 'queued' end,
       case when i <= %(finished)s then 'Completed' end, case when i <= %(finished)s then now() end,
       case when i <= %(finished)s then now() end
from generate_series(1, %(rows)s) i
"""


def claims(server: str, rows: int = 1_000_000, small: int = 10_000, times: int = 100) -> list[Figure]:
    """The same claim with 90 % of the rows finished and 10 % queued, in a large table and in a small one."""
    figures = []
    for tenants in (1, 100):
        with fresh(server) as large_url, fresh(server) as small_url:
            _fill(large_url, rows, tenants)
            _fill(small_url, small, tenants)
            with psycopg.connect(large_url) as one, psycopg.connect(small_url) as other:
                pairs = [(_claim(one), _claim(other)) for _ in range(times)]
        large, little = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
        ratio = median(pair[0] / pair[1] for pair in pairs)
        figures.append(
            Figure(
                f"a claim of 10 from {rows:,} rows, {tenants} tenant{'s' * (tenants > 1)}",
                f"{ms(large)}, {ratio:.2f} x floor",
                f"from {small:,} rows: {ms(little)}",
                "<= 2 x floor",
                ratio <= 2,
            )
        )
    return figures


def _fill(url: str, rows: int, tenants: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL, {"tenants": tenants, "finished": rows * 9 // 10, "rows": rows})
        connection.execute("vacuum analyze sandboxes")


def _claim(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    words = {"me": "bench", "engine": "bench", "lease": 60.0, "max_running": 10**6, "most": 10}
    begin = time.perf_counter()
    found = connection.execute(sql.statements("queue.sql")["claim"], words).fetchall()
    took = time.perf_counter() - begin
    connection.rollback()
    if len(found) != 10:
        raise AssertionError(f"claimed {len(found)} of 10")
    return took


def memory(server: str, sandboxes: int = 10_000, most: int = 150) -> list[Figure]:
    """A controller process with that many live sandboxes, looked at over three comparisons."""
    with fresh(server) as url:
        env = {**os.environ, "DATABASE_URL": url, "HTTP_PORT": "0"}
        env["SANDBOX_MAX_RUNNING"] = str(sandboxes)
        with psycopg.connect(url, autocommit=True) as connection:
            fill = (
                "insert into sandboxes (command, timeout_seconds) select 'sleep 900', 1000 from generate_series(1, %s)"
            )
            connection.execute(fill, [sandboxes])
            line = [sys.executable, "-m", "tests.support.memory_controller"]
            running = subprocess.Popen(line, env=env, stderr=subprocess.DEVNULL)
            try:
                until = time.monotonic() + 120
                while time.monotonic() < until:
                    found = connection.execute("select count(*) from sandboxes where state = 'running'").fetchone()
                    if found == (sandboxes,):
                        break
                    time.sleep(0.2)
                time.sleep(15)
                process = psutil.Process(running.pid)
                used = peak(running.pid) / (1 << 20)
                busy = process.cpu_percent(interval=5)
            finally:
                running.terminate()
                running.wait()
    figure = Figure(
        f"controller memory with {sandboxes:,} live sandboxes",
        f"peak {used:.0f} MiB (the fake engine's runs included); idle CPU {busy:.0f} %",
        "-",
        f"<= {most} MB",
        used * 1.048576 <= most and found == (sandboxes,),
    )
    return [figure]


def peak(pid: int) -> int:
    """The most memory that a process ever held, in bytes; where the system does not tell, what it holds now."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
