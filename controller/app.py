"""The composition root: the only module that wires the parts together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from uuid import uuid4

from controller.backends.base import Backend
from controller.db.installation import identify
from controller.db.listener import listen
from controller.db.migrate import check_schema, retain
from controller.db.pool import Pool, refuse_shared_sessions
from controller.db.registry import Registry
from controller.db.store import Store
from controller.drain import drain as drain_with
from controller.errors import DatabaseReadOnlyError
from controller.give_up import settle_engine
from controller.health.config import HealthConfig
from controller.health.endpoints import HealthServer
from controller.health.readiness import Readiness
from controller.logs import about
from controller.metrics import Metrics
from controller.reconcile.abandoned import Abandoned
from controller.reconcile.config import ControllerConfig
from controller.reconcile.controller import Controller, cancel
from controller.reconcile.presence import Presence
from controller.reconcile.resync import Resync
from controller.reconcile.tracker import Tracker
from controller.reconcile.worker import Worker
from controller.settings import Settings

log = logging.getLogger("controller")

READ_ONLY_SECONDS = 1.0  # between tries of a read-only database


async def serve(
    settings: Settings, backend: Backend, config: ControllerConfig | None = None, store_type: type[Store] = Store
) -> None:
    """Run a controller on this backend until SIGTERM or SIGINT. `config`, `store_type`: as in `assemble`.

    Raises DatabaseExchangedError if its database becomes another installation's.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as until_writable:
        until_writable.push_async_callback(backend.close)
        if not await _wait_for_writes(settings.database_url, stop):
            return
        until_writable.pop_all()  # from here on `assemble` closes it
    async with assemble(settings, backend, config, store_type=store_type) as (controller, store, http):
        if settings.sandbox_retention_seconds is not None:
            await retain(settings.database_url, settings.sandbox_retention_seconds)
        server, port = await http.serve(settings.http_port)
        log.info("controller started", extra=about(controller=store.me, engine=store.engine, http_port=port))
        listener = asyncio.create_task(listen(settings.database_url, "sandbox_wake", controller.wake))
        store.exchanged.add_done_callback(lambda _: stop.set())
        try:
            await controller.run(stop)
            store.refuse_exchanged()
            log.info("controller stopped, what runs goes on")
        finally:
            await cancel([listener])
            await server.cleanup()


async def _wait_for_writes(url: str, stop: asyncio.Event) -> bool:
    """Wait while the database is read-only, as a running controller does; return False if `stop` came first."""
    while not stop.is_set():
        try:
            await check_schema(url)
        except DatabaseReadOnlyError as error:
            log.warning("database read-only, waiting", extra=about(error=error))
        else:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_ONLY_SECONDS):
                await stop.wait()
    return False


async def drain(settings: Settings, backend: Backend, timeout: float, config: ControllerConfig | None = None) -> int:
    """End every sandbox; return the exit code, 1 if something is left after `timeout` seconds."""
    async with assemble(settings, backend, config) as (controller, store, _):
        return await drain_with(controller, store, backend, timeout)


async def give_up(settings: Settings, engine: str) -> Counter[str]:
    """Settle every row of an engine without a controller; return how many became what. Raises as `settle_engine`."""
    await check_schema(settings.database_url)
    me = _name()
    installation, _ = await identify(settings.database_url)  # the rows of a copy are the original's to settle
    async with Pool(settings.database_url, me, installation) as pool:
        store = Store(pool, me, engine, settings.sandbox_output_bytes)
        abandoned = Abandoned(store, Metrics(), settings.sandbox_start_deadline_seconds, 0.0)
        return await settle_engine(store, Registry(store), abandoned)


@asynccontextmanager
async def assemble(
    settings: Settings,
    backend: Backend,
    config: ControllerConfig | None = None,
    health: HealthConfig | None = None,
    store_type: type[Store] = Store,
) -> AsyncIterator[tuple[Controller, Store, HealthServer]]:
    """Yield a controller with its parts, on a database that fits and an engine that answers.

    `config`: in place of the limits and intervals that follow from the settings; `health`: of the HTTP server.
    """
    try:
        await check_schema(settings.database_url)
        await refuse_shared_sessions(settings.database_url)
        me = _name()
        installation, renewed = await identify(settings.database_url)
        if renewed:
            log.warning("database is a copy, it has an id of its own now", extra=about(installation=installation))
        engine = await backend.open(installation)
        async with Pool(settings.database_url, me, installation) as pool:
            store = store_type(pool, me, engine, settings.sandbox_output_bytes)
            registry = Registry(store)
            config = config or config_of(settings, backend)
            presence = Presence(registry, backend, me, engine, grace=config.engine_grace, patience=config.mark_patience)
            async with presence.entered():
                controller = wire(config, store, backend, presence, metrics := Metrics())
                check, health = partial(check_schema, settings.database_url), health or HealthConfig()
                readiness = Readiness(store, backend, controller.claims, check, health)
                yield controller, store, HealthServer(controller, store, metrics, readiness, health)
    finally:
        await backend.close()


def _name() -> str:
    """Return a name for this process's connections, of which Postgres keeps 63 bytes."""
    return f"{socket.gethostname()[:40]}/{os.getpid()}-{uuid4().hex[:6]}"


def config_of(settings: Settings, backend: Backend) -> ControllerConfig:
    """Return the limits and intervals that follow from the settings and the kind of engine."""
    return ControllerConfig(
        max_running=settings.sandbox_max_running,
        max_launching=backend.launching,
        engine_calls=backend.at_once,
        output_bytes=settings.sandbox_output_bytes,
        start_deadline=settings.sandbox_start_deadline_seconds,
        lease=settings.sandbox_lease_seconds,
        poll=settings.sandbox_poll_seconds,
    )


def wire(config: ControllerConfig, store: Store, backend: Backend, presence: Presence, metrics: Metrics) -> Controller:
    """Return a controller made of its parts."""
    claims_due = asyncio.Event()
    tracker = Tracker(config.start_deadline, claims_due.set)
    worker = Worker(store, backend, tracker, metrics, config, claims_due.set)
    resync = Resync(store, backend, worker, tracker, metrics, presence, config.missing_grace)
    abandoned = Abandoned(store, metrics, config.start_deadline, config.engine_grace)
    return Controller(store, backend, worker, tracker, resync, presence, abandoned, metrics, config, claims_due)
