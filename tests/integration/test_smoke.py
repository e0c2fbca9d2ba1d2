from __future__ import annotations

import asyncio
import os
import time

import psycopg

from controller.__main__ import assemble
from controller.backends.memory import MemoryBackend
from controller.queue.listen import listen
from controller.settings import Settings


def test_smoke(database: str) -> None:
    async def go() -> None:
        settings = Settings(database_url=database, sandbox_backend="memory")
        async with assemble(settings, MemoryBackend()) as (controller, queue, http):
            stop = asyncio.Event()
            task = asyncio.create_task(controller.run(stop))
            li = asyncio.create_task(listen(database, "sandbox_wake", controller.wake))
            await asyncio.sleep(0.2)
            c = await psycopg.AsyncConnection.connect(database, autocommit=True)
            t = time.time()
            await c.execute("insert into sandboxes (command) values ('echo hi; exit 3'), ('sleep 0.2')")
            for _ in range(50):
                rows = await (await c.execute("select * from sandbox_results")).fetchall()
                if all(r[-1] for r in rows):
                    break
                await asyncio.sleep(0.02)
            print(time.time() - t)
            for r in rows:
                print(r)
            await asyncio.sleep(0.2)
            for r in await (
                await c.execute("select at, attempt, step, detail from sandbox_events order by id")
            ).fetchall():
                print(r)
            await c.close()
            stop.set()
            li.cancel()
            await task

    asyncio.run(go())
