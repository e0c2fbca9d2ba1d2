"""The detached supervisor of one run: starts its command once, keeps the end of its output, and records its end.

It imports little, because every start waits for it: the `signal` module alone would cost a third of the time.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import time

from controller.backends.process import run_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    import _signal as signal

GRACE_SECONDS = 5.0
LEFTOVER_SECONDS = 10.0
DEAF = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Pipes:
    """The pipes between a supervisor, its command, and the controllers."""

    def __init__(self) -> None:
        self.control = os.open(run_files.CONTROL, os.O_RDONLY | os.O_NONBLOCK)
        # Without a writer of its own, the end of each other writer would look like an end of file.
        self.own_control = os.open(run_files.CONTROL, os.O_WRONLY | os.O_NONBLOCK)
        self.output, self.command_output = os.pipe()
        self.errors, self.command_errors = os.pipe()
        os.set_blocking(self.output, False)


def main(run_directory: str, run_uid: str, wake_directory: str) -> None:
    """Starts that run, unless it was started before or is gone, and supervises it to its end."""
    close_inherited()
    os.chdir(run_directory)
    pipes = Pipes()
    handle_signals(pipes.own_control)
    adopt_orphans()
    request = take(run_uid)
    if request is not None:
        run_files.write_record(run(request, run_directory, pipes, wake_directory))
        run_files.wake(wake_directory, os.path.basename(run_directory))


def close_inherited() -> None:
    """Closes descriptors that a library of the controller leaked."""
    try:
        for descriptor in map(int, os.listdir("/dev/fd")):
            os.closerange(max(descriptor, 3), descriptor + 1)
    except OSError:
        pass


def handle_signals(wakeup: int) -> None:
    """Lets the end of a child wake the supervisor, and has TERM, INT and HUP end the run."""
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: run_files.note(run_files.KILL))
    for number in DEAF:
        signal.signal(number, signal.SIG_IGN)


def adopt_orphans() -> None:
    """On Linux, makes this process the parent of the command's orphans."""
    try:
        import _ctypes  # ctypes itself would cost each start 3 ms

        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        _ctypes.call_function(prctl, (36, 1, 0, 0, 0))  # PR_SET_CHILD_SUBREAPER
    except (ImportError, AttributeError, OSError):
        pass


def take(run_uid: str) -> list[bytes] | None:
    """Takes the run: locks the request for life and renames it, which only one process can do. None if it cannot."""
    try:
        lock = os.open(run_files.INERT, os.O_RDWR)
        request = os.read(lock, os.fstat(lock).st_size).split(b"\0")
        if request[0] != run_uid.encode():
            return None
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(run_files.INERT, run_files.STARTED)
    except OSError:
        return None
    run_files.sync_directory()  # otherwise a crash of the host could make it inert again
    return request


def run(request: list[bytes], run_directory: str, pipes: Pipes, wake_directory: str) -> list[str]:
    """Runs the command to its end; returns the record."""
    output = run_files.SegmentedOutput(pipes.output, int(request[3]))
    try:
        shell = os.fork()
    except OSError as error:
        return [f"never {error}"]
    if shell == 0:
        become_command(request, os.fsencode(run_directory), pipes)
    started_at, started = time.time(), time.monotonic()
    os.close(pipes.command_output)
    os.close(pipes.command_errors)
    failure = os.read(pipes.errors, 4096)
    if failure:
        os.waitpid(shell, 0)
        return [f"failed {failure.decode(errors='replace')}"]
    run_files.note(run_files.RUNNING, at=started_at)
    run_files.wake(wake_directory, os.path.basename(run_directory))
    record = watch(shell, output, pipes, started + int(request[1]))
    record += [f"started {started_at:.6f}", f"ended {time.time():.6f}"]
    code = os.waitstatus_to_exitcode(end(shell))
    output.drain()
    return [*record, f"exit {code}" if code >= 0 else f"signal {-code}", f"output {output.total}"]


def become_command(request: list[bytes], run_directory: bytes, pipes: Pipes) -> NoReturn:
    """Replaces this forked child by the command's shell, or reports why it cannot."""
    try:
        os.setsid()
        os.dup2(pipes.command_output, 1)
        os.dup2(pipes.command_output, 2)
        for ignored in (*DEAF, signal.SIGPIPE, signal.SIGXFSZ):  # by Python; a command would inherit that
            signal.signal(ignored, signal.SIG_DFL)
        home, temporary = (
            os.path.join(run_directory, os.fsencode(name)) for name in (run_files.WORK, run_files.TEMPORARY)
        )
        defaults = {b"PATH": PATH, b"HOME": home, b"TMPDIR": temporary, os.fsencode(run_files.MARKER): request[0]}
        given = {name: value for name, _, value in (entry.partition(b"=") for entry in request[5:])}
        file_bytes = given.pop(
            os.fsencode(run_files.FILE_BYTES), None
        )  # absent in requests of versions without this limit
        os.chdir(run_files.WORK)
        limit(resource.RLIMIT_CORE, 0)
        limit(resource.RLIMIT_DATA, int(request[2]))
        if file_bytes is not None:
            limit(resource.RLIMIT_FSIZE, int(file_bytes))
        os.execve(b"/bin/sh", (b"/bin/sh", b"-c", b"--", request[4]), defaults | given)
    except BaseException as error:  # this copy of the supervisor must not continue
        os.write(pipes.command_errors, (str(error) or repr(error)).encode(errors="replace"))
    finally:
        os._exit(127)


def limit(kind: int, value: int) -> None:
    """Lowers a resource limit for good; a lower one stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def watch(shell: int, output: run_files.SegmentedOutput, pipes: Pipes, deadline: float) -> list[str]:
    """Waits for the shell's end; ends it at its timeout, and at once on request."""
    cause: list[str] = []
    asked = False
    poller = select.poll()
    poller.register(pipes.output, select.POLLIN)
    poller.register(pipes.control, select.POLLIN)
    while not ended(shell):
        now = time.monotonic()
        if not asked and os.path.exists(run_files.KILL):
            asked = True
            cause = cause or ["killed"]
            kill_group(shell, signal.SIGKILL)
        elif now >= deadline and not cause:
            cause = ["timed_out"]
            run_files.note(run_files.TIMEOUT, durable=True)
            kill_group(shell, signal.SIGTERM)
            deadline = now + GRACE_SECONDS
        elif now >= deadline:
            kill_group(shell, signal.SIGKILL)
            deadline = now + LEFTOVER_SECONDS
        for descriptor, _ in poller.poll(max(0.0, deadline - now) * 1000 + 1):
            if descriptor == pipes.control:
                os.read(pipes.control, 4096)
            elif not output.pump():
                poller.unregister(pipes.output)
    return cause


def ended(shell: int) -> bool:
    """Whether the shell has ended. It stays a zombie, so that its process group keeps its number; others are reaped."""
    while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if child.si_pid == shell:
            return True
        os.waitpid(child.si_pid, 0)
    return False


def end(shell: int) -> int:
    """Kills what the ended shell left behind; returns the shell's wait status."""
    kill_group(shell, signal.SIGKILL)
    status = os.waitpid(shell, 0)[1]
    give_up = time.monotonic() + LEFTOVER_SECONDS
    try:
        while time.monotonic() < give_up:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                kill_children()
                time.sleep(0.001)
    except ChildProcessError:
        pass  # none is left
    return status


def kill_children() -> None:
    """Kills this process's children, which /proc shows: the command's orphans. They may have children in turn."""
    own = str(os.getpid()).encode()
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                if stat.read().rpartition(b")")[2].split()[1] == own:
                    os.kill(int(name), signal.SIGKILL)
        except OSError:
            continue


def kill_group(group: int, number: int) -> None:
    """Signals a process group, if it still exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # macOS refuses if only zombies are left
