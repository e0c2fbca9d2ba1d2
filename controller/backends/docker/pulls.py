"""Image pulls in the background, with limits per registry and tenant that a silent registry cannot exhaust."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from controller.errors import ImagePullingError, SandboxError, TransientEngineError
from controller.logs import about
from controller.protocol.model import Key

log = logging.getLogger(__name__)

FAILURES = 10_000  # kept for attempts that have not asked again yet

Fetch = Callable[[str, Callable[[], None]], Awaitable[None]]
Schedule = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


@dataclass(frozen=True, slots=True)
class PullLimits:
    """How many pulls run at once, and for how long without progress. Times are seconds."""

    at_once: int = 12  # pulls that report progress
    per_registry: int = 6
    per_tenant: int = 4
    quiet: float = 3.0  # without progress, after which a pull no longer counts towards these limits
    silence: float = 60.0  # without progress, after which a pull is cancelled
    quiet_at_once: int = 32  # beyond that the pull that has been quiet for longest is cancelled


@dataclass(eq=False, slots=True)
class Pull:
    """One image that is being pulled or waits for that, and the attempts that need it."""

    image: str
    registry: str
    over: asyncio.Future[None]
    tenants: dict[str, None] = field(default_factory=dict)  # in the order of their requests
    keys: set[Key] = field(default_factory=set)
    tenant: str | None = None  # whose limit it counts towards
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    given_up: str | None = None


class Pulls:
    """Pulls each image at most once at a time.

    `fetch(image, progressed)` pulls one image, calls `progressed` at each sign of progress, and raises SandboxError if
    the pull fails. `schedule` is `call_later` of the running loop unless given.
    """

    def __init__(
        self,
        fetch: Fetch,
        registry_of: Callable[[str], str],
        limits: PullLimits | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self._fetch, self._registry_of = fetch, registry_of
        self._limits, self._schedule = limits or PullLimits(), schedule
        self._pulls: dict[str, Pull] = {}
        self._active: set[Pull] = set()
        self._quiet: dict[Pull, None] = {}  # in the order in which they went quiet
        self._failed: dict[Key, SandboxError] = {}  # attempts whose pull failed, and that have not asked again yet

    def request(self, image: str, key: Key, tenant: str) -> SandboxError:
        """Has that image pulled. Returns the error for the attempt now: of a failed pull, or ImagePullingError."""
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
        """Cancels every pull."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.over.cancel()
        tasks = [pull.task for pull in pulls if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        """Starts the pulls that the limits allow, first from registries with the fewest quiet pulls."""
        waiting = [pull for pull in self._pulls.values() if pull.task is None]
        quiet = Counter(pull.registry for pull in self._quiet)
        for pull in sorted(waiting, key=lambda pull: quiet[pull.registry]):
            if len(self._active) >= self._limits.at_once:
                return
            registries = Counter(each.registry for each in self._active)
            tenants = Counter(each.tenant for each in self._active)
            pull.tenant = next((tenant for tenant in pull.tenants if tenants[tenant] < self._limits.per_tenant), None)
            if pull.tenant is not None and registries[pull.registry] < self._limits.per_registry:
                pull.task = asyncio.create_task(self._run(pull))
                self._progressed(pull)

    async def _run(self, pull: Pull) -> None:
        failure: SandboxError | None = None
        try:
            await self._fetch(pull.image, lambda: self._progressed(pull))
        except TransientEngineError as error:
            failure = ImagePullingError(str(error))
        except SandboxError as error:
            failure = error
        except asyncio.CancelledError:
            if pull.given_up is None:
                raise
            failure = ImagePullingError(pull.given_up)
        except Exception:
            log.exception("unexpected error in an image pull", extra=about(image=pull.image))
            failure = ImagePullingError(f"the image {pull.image} cannot be pulled now: see the controller's log")
        finally:
            self._end(pull, failure)

    def _end(self, pull: Pull, failure: SandboxError | None) -> None:
        self._active.discard(pull)
        self._quiet.pop(pull, None)
        if pull.timer is not None:
            pull.timer.cancel()
        del self._pulls[pull.image]
        if failure is not None:
            self._failed |= dict.fromkeys(pull.keys, failure)
            for key in list(self._failed)[:-FAILURES]:
                del self._failed[key]
        if not pull.over.done():
            pull.over.set_result(None)
            self._fill()

    def _progressed(self, pull: Pull) -> None:
        self._quiet.pop(pull, None)
        self._active.add(pull)
        self._wake_in(pull, self._limits.quiet, self._is_quiet)

    def _is_quiet(self, pull: Pull) -> None:
        self._active.discard(pull)
        self._quiet[pull] = None
        self._wake_in(pull, self._limits.silence - self._limits.quiet, self._give_up)
        if len(self._quiet) > self._limits.quiet_at_once:
            self._give_up(next(iter(self._quiet)))
        self._fill()

    def _give_up(self, pull: Pull) -> None:
        self._quiet.pop(pull, None)  # its task ends later: meanwhile the next that goes quiet must not pick it again
        pull.given_up = f"the pull of {pull.image} makes no progress"
        if pull.task is not None:
            pull.task.cancel()

    def _wake_in(self, pull: Pull, seconds: float, what: Callable[[Pull], None]) -> None:
        if pull.timer is not None:
            pull.timer.cancel()
        schedule = self._schedule or asyncio.get_running_loop().call_later
        pull.timer = schedule(seconds, lambda: what(pull))
