"""The pretended node: runs pods' commands by pretending, and ends them at their ends, deadlines and deletions."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from tests.support.fake_kubernetes.controllers import Controller
from tests.support.fake_kubernetes.registry import OVER, Registry
from tests.support.fake_kubernetes.store import PODS, Event, Object, Ref, time_text
from tests.support.memory_backend import pretend

WRAPPED = 6  # words, at least, of a container's command that is the wrapper: `controller/backends/guest/wrapper.sh`
TIMEOUT = 5  # which of them is its timeout, in seconds
VARIABLE = re.compile(r"\$\$|\$\(([^()]*)\)")
KILLED, TIMED_OUT = 137, 143
DEADLINE = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}


@dataclass(slots=True)
class Run:
    """One container that runs."""

    started: float  # seconds since 1970
    timer: asyncio.TimerHandle | None = None
    missed: bool = False  # its command ended while the kubelet was off
    code: int | None = None


class Kubelet(Controller):
    """Starts what is on the node and ends it; `delay` is how many seconds a container takes to be made."""

    def __init__(self, registry: Registry, delay: float) -> None:
        super().__init__(registry)
        self.delay = delay
        self.starts: Counter[tuple[str, str]] = Counter()  # of commands, by sandboxId and attempt
        self.logs: dict[str, bytes] = {}  # by the pod's uid
        self._runs: dict[str, Run] = {}  # by the pod's uid
        self._due_at: dict[str, float] = {}  # when a container will have been made

    def notice(self, event: Event) -> None:
        if event.ref.kind is not PODS:
            return
        if event.type == "DELETED":
            uid = event.object["metadata"]["uid"]
            self.forget(uid)
            self.logs.pop(uid, None)
        else:
            self.enqueue(event.ref)

    def forget(self, uid: str) -> None:
        """That container is gone without a word."""
        run = self._runs.pop(uid, None)
        self._due_at.pop(uid, None)
        if run is not None and run.timer is not None:
            run.timer.cancel()

    def sync(self, ref: Ref) -> None:
        pod = self.store.find(ref)
        if pod is None or not pod["spec"].get("nodeName"):
            return
        status, going = pod["status"], pod["metadata"].get("deletionTimestamp")
        if status.get("phase") in OVER:
            self.forget(pod["metadata"]["uid"])
            if going:
                self.registry.delete(ref, {"gracePeriodSeconds": 0})
        elif going:
            self.kill(ref)
        elif "startTime" not in status:
            self.registry.change(ref, _admit)
        elif (run := self._runs.get(pod["metadata"]["uid"])) is not None and run.missed:
            self._end(ref, pod["metadata"]["uid"], run.code)
        elif not self._past_deadline(ref, pod) and _waits(pod):
            self._start_in_time(ref, pod)

    def kill(self, ref: Ref, why: Object | None = None) -> None:
        """Ends a pod's container by force; `why` goes into the pod's status."""
        pod = self.store.get(ref)
        run = self._runs.get(pod["metadata"]["uid"])
        lines = ["started", f"started_at {int(run.started)}"] if run is not None else []
        self._over(ref, KILLED if run is not None else None, lines, why or {})

    def start(self, ref: Ref) -> None:
        """Starts a pod's command."""
        pod = self.store.get(ref)
        uid, labels = pod["metadata"]["uid"], pod["metadata"].get("labels") or {}
        self.starts[labels.get("sandboxId", ""), labels.get("attempt", "")] += 1
        seconds, code, self.logs[uid] = _command(pod["spec"]["containers"][0])
        run = self._runs[uid] = Run(time.time())
        timeout = _timeout(pod["spec"]["containers"][0])
        running: Object = {"running": {"startedAt": _text(run.started)}}
        self.registry.change(ref, _changer("Running", running, "True"))
        late = timeout is not None and seconds > timeout
        wait = timeout if timeout is not None and late else seconds
        run.timer = asyncio.get_running_loop().call_later(wait, self._end, ref, uid, None if late else code)

    def end(self, ref: Ref, code: int, lines: list[str]) -> None:
        """Ends a pod's container, with these lines as its termination message."""
        self._over(ref, code, lines, {})

    def _end(self, ref: Ref, uid: str, code: int | None) -> None:
        """Its command ended by itself; None: its timeout ended it."""
        pod, run = self.store.find(ref), self._runs.get(uid)
        if run is None or pod is None or pod["metadata"]["uid"] != uid:
            return
        if not self.on:
            run.missed, run.code = True, code
            return
        timeout, exit_code = (["timeout"], TIMED_OUT) if code is None else ([], code)
        end = [f"exit {exit_code}", f"ended_at {int(time.time())}"]
        self._over(ref, exit_code, ["started", f"started_at {int(run.started)}", *timeout, *end], {})

    def _over(self, ref: Ref, code: int | None, lines: list[str], why: Object) -> None:
        """The container ended with that code, or None: it was never started."""
        pod = self.store.get(ref)
        run = self._runs.get(pod["metadata"]["uid"])
        now = time.time()
        ended: Object = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": _text(run.started if run is not None else now),
            "finishedAt": _text(now),
            "message": "".join(f"{line}\n" for line in lines),
            "containerID": f"containerd://{pod['metadata']['uid']}",
        }
        self.forget(pod["metadata"]["uid"])
        phase = "Succeeded" if code == 0 else "Failed"
        self.registry.change(ref, _changer(phase, {"terminated": ended} if code is not None else None, "False", why))

    def _past_deadline(self, ref: Ref, pod: Object) -> bool:
        seconds = pod["spec"].get("activeDeadlineSeconds")
        if seconds is None:
            return False
        left = datetime.fromisoformat(pod["status"]["startTime"]).timestamp() + seconds - time.time()
        if left > 0:
            self.later(left, ref)
            return False
        self.kill(ref, dict(DEADLINE))
        return True

    def _start_in_time(self, ref: Ref, pod: Object) -> None:
        now = time.monotonic()
        left = self._due_at.setdefault(pod["metadata"]["uid"], now + self.delay) - now
        if left <= 0:
            self.start(ref)
        else:
            self.later(left, ref)


def _admit(pod: Object) -> None:
    """The node has taken the pod in."""
    containers = [
        {
            "name": one["name"],
            "image": one["image"],
            "imageID": "",
            "ready": False,
            "started": False,
            "restartCount": 0,
            "lastState": {},
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }
        for one in pod["spec"]["containers"]
    ]
    now = _text(time.time())
    pod["status"] |= {"phase": "Pending", "startTime": now, "hostIP": "127.0.0.1", "containerStatuses": containers}


def _waits(pod: Object) -> bool:
    """Whether its container is only waiting to be made; any other reason is a test's own."""
    found = pod["status"].get("containerStatuses") or [{}]
    waiting = found[0].get("state", {}).get("waiting") or {}
    return waiting.get("reason") == "ContainerCreating"


def _changer(phase: str, state: Object | None, ready: str, why: Object | None = None) -> Callable[[Object], None]:
    """Writes where a pod and its first container stand."""

    def change(pod: Object) -> None:
        status, digest = pod["status"], sha256(pod["spec"]["containers"][0]["image"].encode()).hexdigest()
        if not status.get("containerStatuses"):
            _admit(pod)
        container, now = status["containerStatuses"][0], _text(time.time())
        if state is not None:
            container |= {"state": deepcopy(state), "ready": ready == "True", "started": ready == "True"}
            container |= {"containerID": f"containerd://{pod['metadata']['uid']}"}
            container |= {"imageID": f"{container['image']}@sha256:{digest}"}
        kinds = ("Ready", "ContainersReady")
        kept = [one for one in status.get("conditions", ()) if one["type"] not in kinds]
        told = [{"type": kind, "status": ready, "lastTransitionTime": now} for kind in kinds]
        status |= {"phase": phase, "conditions": [*kept, *told], **(why or {})}

    return change


def _command(container: Object) -> tuple[float, int, bytes]:
    """What a container's command would do: seconds, exit code, output."""
    words = [_expanded(word, container) for word in container.get("args") or [""]]
    if len(container.get("command") or ()) < WRAPPED:
        return pretend(words[-1])
    seconds, code, output = pretend(words[0])
    return seconds, code, b"".join(f"{line}\n".encode() for line in words[1:2]) + output


def _timeout(container: Object) -> float | None:
    command = container.get("command") or [""]
    return float(command[TIMEOUT]) if len(command) >= WRAPPED else None


def _expanded(word: str, container: Object) -> str:
    """A word as Kubernetes hands it on: `$$` is a dollar, `$(NAME)` a variable."""
    env = {one["name"]: str(one.get("value", "")) for one in container.get("env") or ()}
    return VARIABLE.sub(lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]), word)


def _text(seconds: float) -> str:
    return time_text(datetime.fromtimestamp(seconds, UTC))
