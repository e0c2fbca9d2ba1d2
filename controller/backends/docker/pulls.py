"""Pulls of images in the background: how many at once, for whom, and what a silent registry cannot hold up."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from controller.errors import ImagePullingError, SandboxError, TransientEngineError
from controller.protocol.model import Key

log = logging.getLogger(__name__)

AT_ONCE, PER_REGISTRY, PER_TENANT = 12, 6, 4  # pulls that give signs of progress
QUIET_SECONDS = 3.0  # without one, after which a pull goes on beside these numbers
SILENCE_SECONDS = 60.0  # without one, after which it is given up
QUIET_AT_ONCE = 32  # beyond that the one that has been quiet for longest is given up
VERDICTS = 10_000  # failures kept for attempts that have not asked again yet

Fetch = Callable[[str, Callable[[], None]], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Pull:
    """One image on its way, and who waits for it."""

    image: str
    registry: str
    over: asyncio.Future[None]
    tenants: dict[str, None] = field(default_factory=dict)  # in the order in which they asked
    keys: set[Key] = field(default_factory=set)
    tenant: str | None = None  # on whose account it was started
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    given_up: str | None = None


class Pulls:
    """Pulls each image once at a time. `fetch(image, heard)` pulls one, calls `heard` at each sign of progress, and
    raises SandboxError where that fails."""

    def __init__(self, fetch: Fetch, registry_of: Callable[[str], str]) -> None:
        self._fetch, self._registry_of = fetch, registry_of
        self._pulls: dict[str, Pull] = {}
        self._lively: set[Pull] = set()
        self._quiet: dict[Pull, None] = {}  # in the order in which they went quiet
        self._failed: dict[Key, SandboxError] = {}  # for who waited for a pull that failed, and has yet to ask again

    def away(self, image: str, key: Key, tenant: str) -> SandboxError:
        """Why an attempt cannot have that image now; sees to it that it is pulled."""
        if key in self._failed:
            return self._failed.pop(key)
        pull = self._pulls.get(image)
        if pull is None:
            over = asyncio.get_running_loop().create_future()
            pull = self._pulls[image] = Pull(image, self._registry_of(image), over)
        pull.keys.add(key)
        pull.tenants.setdefault(tenant)
        self._fill()
        doing = "is being pulled" if pull.task is not None else "waits for other pulls to end"
        return ImagePullingError(f"the image {image} {doing}", pull.over)

    async def close(self) -> None:
        """Ends every pull."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.over.cancel()
        tasks = [pull.task for pull in pulls if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        """Starts what may be started: first what is on the registry of which the fewest pulls are quiet."""
        waiting = [pull for pull in self._pulls.values() if pull.task is None]
        quiet = Counter(pull.registry for pull in self._quiet)
        for pull in sorted(waiting, key=lambda pull: quiet[pull.registry]):
            if len(self._lively) >= AT_ONCE:
                return
            registries = Counter(each.registry for each in self._lively)
            tenants = Counter(each.tenant for each in self._lively)
            pull.tenant = next((tenant for tenant in pull.tenants if tenants[tenant] < PER_TENANT), None)
            if pull.tenant is not None and registries[pull.registry] < PER_REGISTRY:
                pull.task = asyncio.create_task(self._run(pull))
                self._heard(pull)

    async def _run(self, pull: Pull) -> None:
        failure: SandboxError | None = None
        try:
            await self._fetch(pull.image, lambda: self._heard(pull))
        except TransientEngineError as error:
            failure = ImagePullingError(str(error))
        except SandboxError as error:
            failure = error
        except asyncio.CancelledError:
            if pull.given_up is None:
                raise
            failure = ImagePullingError(pull.given_up)
        except Exception:
            log.exception("the pull of %s failed", pull.image)
            failure = ImagePullingError(f"the image {pull.image} cannot be had now: see the controller's log")
        finally:
            self._end(pull, failure)

    def _end(self, pull: Pull, failure: SandboxError | None) -> None:
        self._lively.discard(pull)
        self._quiet.pop(pull, None)
        if pull.timer is not None:
            pull.timer.cancel()
        del self._pulls[pull.image]
        if failure is not None:
            self._failed |= dict.fromkeys(pull.keys, failure)
            for key in list(self._failed)[:-VERDICTS]:
                del self._failed[key]
        if not pull.over.done():
            pull.over.set_result(None)
            self._fill()

    def _heard(self, pull: Pull) -> None:
        self._quiet.pop(pull, None)
        self._lively.add(pull)
        self._wake_in(pull, QUIET_SECONDS, self._is_quiet)

    def _is_quiet(self, pull: Pull) -> None:
        self._lively.discard(pull)
        self._quiet[pull] = None
        self._wake_in(pull, SILENCE_SECONDS - QUIET_SECONDS, self._give_up)
        if len(self._quiet) > QUIET_AT_ONCE:
            self._give_up(next(iter(self._quiet)))
        self._fill()

    def _give_up(self, pull: Pull) -> None:
        pull.given_up = f"the pull of {pull.image} gives no sign of progress"
        if pull.task is not None:
            pull.task.cancel()

    def _wake_in(self, pull: Pull, seconds: float, what: Callable[[Pull], None]) -> None:
        if pull.timer is not None:
            pull.timer.cancel()
        pull.timer = asyncio.get_running_loop().call_later(seconds, what, pull)
