"""How many: whole lives a second, against the same statements sent by a bare client."""

from __future__ import annotations

import asyncio
import time
from statistics import median

import psycopg
from psycopg.rows import dict_row

from controller.app import assemble
from controller.db.pool import Pool
from controller.db.store import Store
from controller.db.writes import Ended, MarkCleaned, WriteBind, WriteRunning
from controller.protocol.model import Key, Outcome, Output, Reason, State
from controller.settings import Settings
from tests.bench.report import Figure
from tests.bench.support import fresh, until_empty
from tests.support.memory_backend import MemoryBackend, MemoryEngine

FILL = "insert into sandboxes (command) select 'echo hi' from generate_series(1, %s)"


async def whole_lives(server: str, rows: int = 10_000, rounds: int = 5) -> list[Figure]:
    """Claim to cleaned, memory backend, one controller; and two, which share the rows."""
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(await _replayed(server, rows))
        ours.append(await _lived(server, rows, controllers=1))
    ratio = median(one / other for one, other in zip(ours, bare, strict=True))
    two = await _lived(server, rows, controllers=2)
    return [
        Figure(
            f"whole lives a second, memory backend, {rows:,} rows, median of {rounds}",
            f"{median(ours):,.0f}/s ({ratio:.2f} x floor); each: {', '.join(f'{one:,.0f}' for one in ours)}",
            f"the same statements by a bare client: {median(bare):,.0f}/s",
            ">= 1,000/s, or >= 0.7 x floor",
            median(ours) >= 1000 or ratio >= 0.7,
        ),
        Figure("the same with two controllers", f"{two:,.0f}/s, no row twice", "-", "no row twice", True),
    ]


async def _lived(server: str, rows: int, controllers: int) -> float:
    engine = MemoryEngine()
    with fresh(server) as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(FILL, [rows])
        stop, begin = asyncio.Event(), time.monotonic()
        running = [asyncio.create_task(_control(url, engine, stop)) for _ in range(controllers)]
        await until_empty(url, "cleaned_at is null")
        took = time.monotonic() - begin
        stop.set()
        await asyncio.gather(*running)
    twice = {key: count for key, count in engine.starts.items() if count != 1}
    if twice or len(engine.starts) != rows:
        raise AssertionError(f"{len(engine.starts)} of {rows} started; started twice: {twice}")
    return rows / took


async def _control(url: str, engine: MemoryEngine, stop: asyncio.Event) -> None:
    settings = Settings(database_url=url, sandbox_max_running=100_000)
    async with assemble(settings, MemoryBackend(engine)) as (controller, _, _):
        await controller.run(stop)


async def _replayed(server: str, rows: int) -> float:
    """Claim, bind, start, record and clean as the controller sends them, with nothing between."""
    with fresh(server) as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) as connection:
            await connection.execute(FILL, [rows])
        async with Pool(url, "bare") as pool:
            store = Store(pool, "bare", "bare", 1 << 20)
            begin = time.monotonic()
            while claimed := await store.claim(500, 100_000, 60.0):
                await _live_through(store, [(each.row.key, each.row.epoch) for each in claimed])
            return rows / (time.monotonic() - begin)


async def _live_through(store: Store, keys: list[tuple[Key, int]]) -> None:
    done = Outcome(State.SUCCEEDED, Reason.COMPLETED, exit_code=0)
    await asyncio.gather(*(store.bind(WriteBind(key, epoch, key.name)) for key, epoch in keys))
    await asyncio.gather(*(store.mark_running(WriteRunning(key, key.name)) for key, _ in keys))
    await asyncio.gather(*(store.record(Ended(key, key.name, done, output=Output(b"hi\n", False))) for key, _ in keys))
    await asyncio.gather(*(store.mark_cleaned(MarkCleaned(key)) for key, _ in keys))
