"""The wrapper, run for real as PID 1 under the shells that images have: busybox ash, dash and bash."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from controller.backends.docker.container import empty_state
from controller.backends.guest.layout import STATE_DIR, STATE_FILE, keeper_text, wrapper_text
from tests.support.engines import missing, need_docker

ASH, DASH = "busybox:stable", "debian:bookworm-slim"
STATE_VOLUME = f"--mount=type=volume,target={STATE_DIR},volume-nocopy"
HOLD = "{{ head -c {0}m /dev/zero; sleep 5; }} | tail -c {0}m >/dev/null"
KILL_SLEEPS = 'for p in /proc/[0-9]*; do read c <$p/comm && [ "$c" = sleep ] && kill ${p#/proc/}; done'


def docker(*words: str, stdin: bytes = b"") -> bytes:
    """The docker command line; what it writes."""
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def bash() -> Iterator[str]:
    """An image whose /bin/sh is bash."""
    need_docker()
    tag = f"wrapper-test-bash:{uuid4().hex}"
    built = subprocess.run(
        ["docker", "build", "-q", "-t", tag, "-"],
        input=f"FROM {DASH}\nRUN ln -sf bash /bin/sh\n".encode(),
        env={"DOCKER_BUILDKIT": "0", "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
    )
    if built.returncode:
        missing("docker", f"an image with bash cannot be built: {built.stderr.decode()}")
    yield tag
    docker("rmi", tag)


@pytest.fixture(params=["ash", "dash", "bash"])
def image(request: pytest.FixtureRequest) -> str:
    """An image for each shell in turn."""
    need_docker()
    if request.param == "bash":
        return str(request.getfixturevalue("bash"))
    return {"ash": ASH, "dash": DASH}[request.param]


@dataclass
class Run:
    """A container with the wrapper, as a backend makes it."""

    name: str

    @property
    def state(self) -> list[str]:
        """The lines of its state file."""
        archive = io.BytesIO(docker("cp", f"{self.name}:{STATE_FILE}", "-"))
        with tarfile.open(fileobj=archive) as tar:
            content = tar.extractfile("state")
            assert content is not None
            return content.read().decode().splitlines()

    @property
    def words(self) -> list[str]:
        """The state file without its times, which come when they come."""
        return [line for line in self.state if line and "_at " not in line]

    @property
    def output(self) -> bytes:
        """All that it wrote."""
        return docker("logs", self.name)

    def start(self) -> int:
        """Starts it; its exit code."""
        docker("start", self.name)
        return int(docker("wait", self.name))


@pytest.fixture
def runs() -> Iterator[list[str]]:
    """The names of the containers to remove."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "-fv", name)


@pytest.fixture
def make(image: str, runs: list[str]) -> Any:
    """Makes a run, not started."""

    def made(
        command: str,
        timeout: int = 30,
        env: Mapping[str, str] | None = None,
        *,
        permitted: bool = True,
        memory: str = "24",
        more: str = "",
        keeper: str = "",
        shell: str = "",
    ) -> Run:
        run = Run(f"wrapper-test-{uuid4()}")
        given = [word for name, value in (env or {}).items() for word in ("--env", f"{name}={value}")]
        limits = "--memory=96m --memory-swap=96m --pids-limit=40 --cpus=1 --network=none --read-only --cap-drop=ALL"
        places = f"--tmpfs=/work:exec,size=16m,uid=1000,gid=1000,mode=0700 --tmpfs=/tmp:exec,size=16m {STATE_VOLUME}"
        fixed = "--user=1000:1000 --workdir=/work --log-driver=local --entrypoint=/bin/sh"
        settings = [*limits.split(), *places.split(), *fixed.split(), *more.split(), *given]
        words = [
            *(("-c", shell, wrapper_text()) if shell else ("-c", wrapper_text(), "sandbox")),
            STATE_FILE,
            str(timeout),
            "16",
            memory,
            keeper or keeper_text(),
            command,
        ]
        docker("create", "--name", run.name, *settings, image, *words)
        runs.append(run.name)
        if permitted:
            docker("cp", "-", f"{run.name}:{STATE_DIR}", stdin=empty_state())
        return run

    return made


def test_both_streams_keep_their_order_and_their_bytes(make: Any) -> None:
    run = make(r"printf 'a'; printf 'b\377' >&2; printf '\000c'; printf '\n  d' >&2; exit 7")
    assert run.start() == 7
    assert run.output == b"ab\xff\0c\n  d"
    assert run.words == ["started", "exit 7"]
    assert {line.split()[0] for line in run.state} == {"started", "started_at", "exit", "ended_at"}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("true", 0),
        ("exit 125", 125),
        ("exit 255", 255),
        ("exit 137", 137),
        ("no-such-command", 127),
        ("/etc", 126),
        ("kill -9 $$", 137),
        ("kill -INT $$", 130),
        ("kill -TERM $$", 143),
    ],
)
def test_exit_codes_pass_through(make: Any, command: str, code: int) -> None:
    run = make(command)
    assert run.start() == code
    assert run.words == ["started", f"exit {code}"]
    if "kill" in command:
        assert run.output == b""  # not a word of the shell around it


def test_the_environment_arrives_as_it_is(make: Any) -> None:
    env = {
        "PATH": "/nowhere",
        "HOME": "/else where",
        "ENV": "/etc/passwd",
        "PS4": "$(exit 9)",
        "LD_LIBRARY_PATH": "/nowhere",
        "QUOTES": "'\"\\`$$ $(HOSTNAME) $HOME ${X} %s",
        "LINES_": "a\n\n b\t\n",
        "WORDS_": "é 漢 🙂",
        "EMPTY": "",
        **dict.fromkeys(("now", "rest", "end", "file", "word", "count", "state", "command"), "theirs"),
    }
    run = make("/bin/cat /proc/self/environ", env=env)
    assert run.start() == 0
    pairs = [entry.partition(b"=") for entry in run.output.split(b"\0") if entry]
    found = {name.decode(): value.decode() for name, _, value in pairs}
    assert {name: found.get(name) for name in env} == env
    shells = {"HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_"}
    images = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"}
    assert found.keys() - env.keys() <= shells | images
    assert len(run.state) == 4  # the wrapper found its own tools all the same


@pytest.mark.parametrize("name", ["IFS", "PATH"])
def test_the_environment_does_not_change_the_timer(make: Any, name: str) -> None:
    run = make("while :; do :; done", timeout=1, env={name: "0123456789./"})
    run.start()
    assert run.words[:2] == ["started", "timeout"]


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ('echo "$0 $# $*"', b"/bin/sh 0 \n"),
        ("echo $$ >/dev/null; echo '$$' \"$(echo x)\" `echo y`\necho z", b"$$ x y\nz\n"),
        ("# only a comment", b""),
        ("pwd; read -r line; echo $? $line", b"/work\n1\n"),
        ('for fd in /proc/self/fd/*; do [ -e $fd ] && printf %s "${fd##*/} "; done; true', b"0 1 2 "),
        ("printf %s '" + "é\n" * 10_000 + "'", "é\n".encode() * 10_000),
        ("umask; ulimit -c >/dev/null; trap", b"0022\n"),
    ],
    ids=["arguments", "quoting", "comment", "stdin", "descriptors", "long", "settings"],
)
def test_the_command_is_as_under_a_plain_shell(make: Any, command: str, output: bytes) -> None:
    run = make(command)
    assert run.start() == 0
    assert run.output == output


@pytest.mark.parametrize("command", ["-c", "--help", "-x -v", "-"])
def test_a_command_that_looks_like_an_option_is_a_command(make: Any, command: str) -> None:
    run = make(command)
    assert run.start() == 127
    assert b"not found" in run.output


def test_a_second_start_runs_nothing(make: Any) -> None:
    run = make("echo ran; exit 3")
    assert run.start() == 3
    first = run.state
    assert run.start() == 3
    assert run.start() == 3
    assert run.output == b"ran\n"
    assert run.state == [*first, "again", "again"]


def test_a_second_start_of_one_that_was_killed_runs_nothing(make: Any) -> None:
    run = make("echo ran; sleep 60")
    docker("start", run.name)
    wait_for(run, b"ran\n")
    docker("kill", run.name)
    docker("wait", run.name)
    assert run.start() == 125
    assert run.output == b"ran\n"
    assert run.words == ["started", "again"]


def test_without_the_file_nothing_runs(make: Any) -> None:
    run = make("echo ran", permitted=False)
    assert run.start() == 125
    assert run.output == b""


def test_the_timeout_ends_the_command_and_all_that_it_started(make: Any) -> None:
    run = make("setsid sleep 100 & echo on; sleep 100", timeout=1)
    assert run.start() == 143
    assert run.words == ["started", "timeout", "exit 143"]


def test_no_command_is_ended_before_its_timeout(make: Any) -> None:
    late_in_a_second = "until grep -q '^[0-9]*[.][89]' /proc/uptime; do sleep 0.02; done"
    shell = f'{late_in_a_second}; exec /bin/sh -c "$0" sandbox "$@"'
    filled = "head -c 14000000 /dev/zero >file"  # over half of what it may have: the keeper looks often
    run = make(
        f"cat /proc/uptime; {filled}; trap 'cat /proc/uptime; exit 0' TERM; sleep 9 & wait", timeout=2, shell=shell
    )
    assert run.start() == 0
    began, ended = (float(line.split()[0]) for line in run.output.splitlines())
    assert ended - began > 1.5  # it begins a moment after the keeper's clock


def test_a_command_that_ignores_the_end_is_killed(make: Any) -> None:
    run = make("trap '' TERM INT HUP; while :; do sleep 1; done", timeout=1)
    begin = time.monotonic()
    assert run.start() == 137
    assert 5.5 < time.monotonic() - begin < 20
    assert run.words == ["started", "timeout", "exit 137"]


def test_killing_every_sleep_does_not_move_the_timeout(make: Any) -> None:
    run = make(f"sleep 0.3; {KILL_SLEEPS}; sleep 0.5; echo alive; sleep 100", timeout=3)
    run.start()
    assert run.output.endswith(b"alive\n")
    assert run.words[:2] == ["started", "timeout"]


def test_a_command_that_kills_all_that_it_can_has_its_own_end(make: Any) -> None:
    run = make("trap '' TERM; kill -TERM -1; exit 4")
    assert run.start() == 4
    assert run.words == ["started", "exit 4"]


def test_what_is_left_behind_is_killed(make: Any) -> None:
    run = make("setsid sh -c 'trap \"\" TERM HUP; (sleep 1000 & sleep 1000) &' & sleep 0.3; echo done; exit 6")
    begin = time.monotonic()
    assert run.start() == 6
    assert time.monotonic() - begin < 15  # and not 1000 s, though they hold the output open
    assert run.output == b"done\n"


def test_a_full_process_table_does_not_save_the_command(make: Any) -> None:
    run = make("trap '' TERM; while :; do sleep 100 & done 2>/dev/null", timeout=2)
    begin = time.monotonic()
    run.start()
    assert time.monotonic() - begin < 40
    assert "timeout" in run.state or any(line.startswith("exit ") for line in run.state)


def test_memory_leaves_evidence(make: Any) -> None:
    run = make("tail /dev/zero; exit $?")
    assert run.start() == 137
    assert sorted(run.words[1:]) in (
        ["exit 137", "oom"],
        ["exit 137", "oom", "oom"],
    )  # the keeper's, the kernel's or both


SIGNALS = "HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF WINCH PWR SYS"
TO_THE_GROUP = f"for s in {SIGNALS}; do trap : $s; kill -$s 0; done; sleep 0.2; kill -0 1; echo fine"


def test_signals_to_the_commands_own_group_are_its_own_business(make: Any) -> None:
    run = make(f"{TO_THE_GROUP}; exit 0")
    assert run.start() == 0
    assert run.output.endswith(b"fine\n")
    assert run.words == ["started", "exit 0"]


def test_the_timer_outlives_signals_to_the_commands_group(make: Any) -> None:
    run = make(f"{TO_THE_GROUP}; sleep 100", timeout=3)
    assert run.start() == 143
    assert run.output.startswith(b"fine\n")
    assert run.words == ["started", "timeout", "exit 143"]


def test_a_command_that_kills_its_group_has_its_own_end(make: Any) -> None:
    run = make("sleep 100 & kill -KILL 0")
    assert run.start() == 137
    assert run.words == ["started", "exit 137"]


@pytest.mark.parametrize("signal", ["STOP", "TSTP", "TTIN"])
def test_a_command_that_stops_its_group_still_meets_its_timeout(make: Any, signal: str) -> None:
    run = make(f"kill -{signal} 0; sleep 100", timeout=1)
    run.start()
    assert run.words[:2] == ["started", "timeout"]


@pytest.mark.parametrize("signal", ["HUP", "INT", "QUIT", "USR1", "ALRM", "TERM", "KILL", "STOP"])
def test_signals_to_the_shell_around_the_command_change_nothing(make: Any, signal: str) -> None:
    run = make(f"kill -{signal} $PPID; sleep 0.2; echo fine; exit 3")
    assert run.start() == 3
    assert run.output == b"fine\n"
    assert run.words == ["started", "exit 3"]


def test_every_signal_has_its_default_meaning_in_the_command(make: Any) -> None:
    run = make("grep SigIgn /proc/self/status; grep SigBlk /proc/self/status")
    assert run.start() == 0
    assert run.output.split() == [b"SigIgn:", b"0" * 16, b"SigBlk:", b"0" * 16]


def test_without_setsid_all_but_kill_and_stop_is_the_commands_own_business(make: Any, image: str) -> None:
    if image == ASH:
        pytest.skip("busybox's shell has a setsid of its own")
    run = make(f"{TO_THE_GROUP}; sleep 100", timeout=3, more="--volume=/dev/null:/usr/bin/setsid")
    assert run.start() == 143
    assert run.words == ["started", "timeout", "exit 143"]


def test_processes_that_hold_too_much_are_killed_and_files_do_not_count(make: Any) -> None:
    run = make(f"head -c 15m /dev/zero >file; cp file /tmp; rm file; {HOLD.format(10)}; echo fine", memory="24")
    assert run.start() == 0
    run = make(HOLD.format(40), memory="24")
    assert run.start() == 137
    assert run.words == ["started", "oom", "exit 137"]


def test_shared_memory_counts_as_memory(make: Any) -> None:
    run = make("for f in 1 2 3; do head -c 15m /dev/zero >/dev/shm/$f; done; sleep 100", memory="24")
    assert run.start() == 137
    assert run.words == ["started", "oom", "exit 137"]


def test_files_in_all_places_together_are_bounded(make: Any) -> None:
    run = make("head -c 15m /dev/zero >x; head -c 15m /dev/zero >/tmp/x; sleep 100", memory="24")
    assert run.start() == 137
    assert run.words == ["started", "disk 30", "exit 137"]


def test_no_file_is_larger_than_disk_mib_and_one(make: Any) -> None:
    sizes = "truncate -s 18M $f || echo no; truncate -s 17M $f || echo no"
    run = make(f"for f in x /dev/shm/x /.sandbox/state; do {sizes}; done")
    run.start()
    assert run.output.count(b"no\n") == 3


def test_the_keeper_reads_a_cgroup_of_version_2_as_well(make: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "memory.current").write_text("60000000\n")
    (tmp_path / "memory.stat").write_text("anon 30000000\nfile 30000000\nkernel 9\nshmem 0\nshmem_thp 0\n")
    keeper = keeper_text().replace("/sys/fs/cgroup", "/fake")
    run = make("sleep 100", timeout=60, keeper=keeper, more=f"--volume={tmp_path}:/fake:ro")
    assert run.start() == 137
    assert run.words[:2] == ["started", "oom"]


def test_cores_are_not_written(make: Any) -> None:
    run = make("ulimit -c; ulimit -H -c")
    assert run.start() == 0
    assert run.output == b"0\n0\n"


FLOODS = {
    "over it": "dd if=/dev/zero of=/.sandbox/state bs=1M count=99 conv=notrunc",
    "anew": "dd if=/dev/zero of=/.sandbox/state bs=1M count=99",
    "after it": "tr '\\0' x </dev/zero >>/.sandbox/state",
    "lines": "yes 'exit 9' >>/.sandbox/state",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_the_end_is_told_of_a_command_that_filled_the_state_file(make: Any, flood: str) -> None:
    run = make(f"({flood}) 2>/dev/null; exit 0")
    assert run.start() == 0
    assert [line for line in run.words[:2] if line] == ["started", "exit 0"]


def test_the_timeout_is_told_of_a_command_that_filled_the_state_file(make: Any) -> None:
    run = make(f"({FLOODS['after it']}) 2>/dev/null; sleep 100", timeout=2)
    run.start()
    assert run.words[:2] == ["started", "timeout"]


def test_a_full_process_table_does_not_end_the_keeper(make: Any) -> None:
    fill = "while :; do sleep 4 & done 2>/dev/null"
    run = make(f"(({fill}); true); sleep 6; echo fine; sleep 100", timeout=12)
    run.start()
    assert run.words[:2] == ["started", "timeout"]


def test_a_command_has_its_processor_time_for_itself(make: Any) -> None:
    run = make("cut -d' ' -f14,15 /proc/$$/stat")
    run.start()
    assert sum(map(int, run.output.split())) < 10  # hundredths of a second, what came before the command with them


def test_a_timeout_that_comes_before_the_command_ends_it_as_any_other(make: Any) -> None:
    run = make("sleep 100", timeout=0)
    assert run.start() == 143
    assert run.words == ["started", "timeout", "exit 143"]


def wait_for(run: Run, output: bytes) -> None:
    """Waits until it has written that."""
    deadline = time.monotonic() + 20
    while run.output != output:
        assert time.monotonic() < deadline, run.output
