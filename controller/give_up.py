"""`give-up`: settles what is left on an engine that is gone for good."""

from __future__ import annotations

from collections import Counter

from controller.db.registry import Registry
from controller.db.store import Store
from controller.errors import SandboxError, SettingsError
from controller.reconcile.abandoned import Abandoned
from controller.reconcile.presence import RENAMED


async def settle_engine(store: Store, registry: Registry, abandoned: Abandoned) -> Counter[str]:
    """Settle every row of the store's engine; return how many became what.

    Raises SandboxError if a controller of that engine is connected, if it has no rows, or if some cannot be written.
    """
    engine = store.engine
    if not await registry.visible():
        raise SettingsError(RENAMED)
    attending = await registry.attending()
    for each in attending:
        if each.engine == engine and each.connected:
            raise SandboxError(f"the controller {each.name} of engine {engine} is connected: stop it first")
    total: Counter[str] = Counter()
    while done := await abandoned.settle(engine, given_up=True):
        total += done
    if left := await store.owned_rows():
        raise SandboxError(f"{len(left)} sandboxes are still on engine {engine}, the log says why: run it again")
    if not total:
        known = ", ".join(sorted({each.engine for each in attending})) or "none"
        raise SandboxError(f"no sandbox is left on an engine {engine}; engines in the table: {known}")
    return total
