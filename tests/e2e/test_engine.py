"""Both stacks through the real engine, with providers that make nothing: order, state, differences, secrets."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pulumi.automation as auto
import pytest

from infra import program
from infra.config import Config
from infra.preflight import Found
from infra.preflight.cluster import Cluster
from tests.support.config_keys import EVERY_KEY, SECRETS
from tests.support.engines import missing
from tests.support.fake_ending import fake_ending
from tests.support.fake_preflight import fake_preflight
from tests.support.fake_providers import FakeProvider, serving
from tests.support.fake_waits import FakeWaits
from tests.support.pulumi import ROOT, environment, left_of

pytestmark = pytest.mark.alone  # what Pulumi leaves in this process changes every later fork

STACKS: dict[str, dict[str, str]] = {
    "dev": {"target": "docker", "dockerSocketGroup": "0"},
    "prod": {"target": "kubernetes", "registry": "registry.example/team", "kubeContext": "it"},
}
# Every key but those of STACKS and the volume's, which `databaseUrl` excludes.
KEYS: dict[str, dict[str, str]] = {
    "dev": {
        "appImage": "registry.example/app:1",
        "sandboxImage": "registry.example/box:1",
        "postgresImage": "postgres:15.14-bookworm",
        "databasePassword": "hidden",
        "databasePort": "5433",
        "httpPort": "3001",
        "dockerSocket": "/run/docker.sock",
        "protectDatabase": "true",
        "maxRunning": "8",
        "drainSeconds": "60",
    },
    "prod": {
        "pullRegistry": "inside.example:5000/team",
        "registryUsername": "me",
        "registryPassword": "hidden",
        "imagePullSecret": "login",
        "databaseUrl": "postgresql://me:hidden@db.example/it",
        "databaseCidrs": '["10.1.0.0/16"]',
        "namespace": "app",
        "sandboxNamespace": "boxes",
        "createNamespaces": "false",
        "createLimits": "true",
        "replicas": "3",
        "quotaCpu": "8",
        "quotaMemory": "16Gi",
        "quotaPods": "20",
        "requesterNamespaces": '["one", "two"]',
        "monitoringNamespace": "metrics",
        "apiServerCidrs": '["10.2.0.1/32"]',
        "egressCidrs": '["203.0.113.0/24", "dns"]',
        "jobOptions": '{"runtimeClassName": "gvisor"}',
    },
}
STARTS = {  # in this order, each once what is before it is ready; with the form of the name that is waited for
    "dev": {"Container database": "-database$", "Container migration": "-migration$", "Container app": "-app$"},
    "prod": {"StatefulSet database": "-database$", "Job migration": "^migration", "Deployment controller": "-prod$"},
}
CHANGED = {  # what follows from another `maxRunning`
    "dev": {("create", "Container app"), ("delete", "Container app")},
    "prod": {("update", "Deployment controller")},
}
DELETED = {  # by hand: one of each component that makes objects
    "dev": {
        "Container app",
        "Container migration",
        "Container database",
        "Network network",
        "Volume database-volume",
        "RemoteImage database-image",
    },
    "prod": {
        "Namespace sandbox-namespace",
        "NetworkPolicy sandboxes-deny-all",
        "NetworkPolicy database",
        "Role controller-role",
        "ServiceAccount controller-account",
        "ResourceQuota sandbox-quota",
        "LimitRange sandbox-defaults",
        "StatefulSet database",
        "Service controller-service",
        "Secret controller-credentials",
        "Secret migration-credentials",
        "Deployment controller",
    },
}

ENDS: dict[str, tuple[list[str], list[str]]] = {  # what is deleted before the second drain, and what after it
    "dev": (["Container app"], ["Container database", "Network network", "Volume database-volume", "remove"]),
    "prod": (
        ["Deployment controller"],
        [
            *("NetworkPolicy sandboxes-deny-all", "NetworkPolicy sandboxes-egress", "NetworkPolicy controller"),
            *("RoleBinding controller-role-binding", "ServiceAccount controller-account"),
            *("Secret controller-credentials", "ResourceQuota sandbox-quota", "StatefulSet database", "free_volume"),
            *("Namespace sandbox-namespace", "Namespace app-namespace", "watch", "empty", "sweep"),
        ],
    ),
}


APP = "ci-fixer-sandbox-prod"
MIGRATED = {"Secret migration-credentials", "Job migration"}
ROTATED: dict[str, dict[str, tuple[set[str], set[str]]]] = {  # what another password makes anew, and what it changes
    "dev": {
        "requester": ({"Container migration"}, set()),
        "controller": ({"Container migration", "Container app"}, set()),
    },
    "prod": {
        "requester": (MIGRATED, {"Secret requester-credentials"}),
        "controller": (MIGRATED, {"Secret controller-credentials", "Deployment controller"}),
    },
}


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeProvider, str]]:
    """One that stands for all, for a program that ends nothing."""
    monkeypatch.chdir(ROOT / "infra")  # where Pulumi runs the program
    if shutil.which("pulumi") is None:
        missing("pulumi", "the command pulumi is not there (https://www.pulumi.com/docs/install/)")
    monkeypatch.chdir(ROOT / "infra")  # where Pulumi runs the program
    with serving("docker", "kubernetes", "random") as served:
        fake_ending(monkeypatch, served[0].done)
        yield served


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> FakeWaits:
    """What the program waits by."""
    monkeypatch.chdir(ROOT / "infra")  # as the engine runs it, so that build contexts are found
    fake = FakeWaits()
    monkeypatch.setattr(program, "EngineWaits", lambda: fake)
    monkeypatch.setattr(program, "ClusterWaits", lambda context: fake)
    return fake


def made(name: str, directory: Path, debug: str) -> auto.Stack:
    """A stack of that name with its own state, and the program as it is."""
    shutil.copy(ROOT / "Pulumi.yaml", directory)
    for part in ("infra", "state"):
        (directory / part).mkdir()
    variables = environment(directory / "state") | {
        "PULUMI_DEBUG_PROVIDERS": debug,
        "PULUMI_AUTOMATION_API_SKIP_VERSION_CHECK": "true",
    }
    workspace = auto.LocalWorkspace(work_dir=str(directory), program=program.main, env_vars=variables)
    stack = auto.Stack.create(name, workspace)
    for key, value in STACKS[name].items():
        stack.set_config(f"ci-fixer-sandbox:{key}", auto.ConfigValue(value))
    return stack


@contextmanager
def untidy() -> Iterator[None]:
    """Takes away the loops and sockets that the Automation API leaves open, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


def changes(result: auto.UpResult) -> dict[str, int]:
    """How many resources were made, changed and so on; those that stayed left out."""
    return {str(kind): count for kind, count in (result.summary.resource_changes or {}).items() if kind != "same"}


def ends_in_order(name: str, done: list[tuple[str, str]]) -> None:
    """Sees that sandboxes ended before the controllers and once more after them, and all that they need after that."""
    order = [thing for _, thing in done]
    assert done[0] == ("end", "drain")
    again = order.index("drain_alone")
    before, after = ENDS[name]
    assert max(order.index(thing) for thing in before) < again < min(order.index(thing) for thing in after)


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_comes_up_once_changes_by_its_configuration_alone_and_goes(
    name: str, tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    provider, debug = providers
    with untidy():
        stack = made(name, tmp_path, debug)
        assert set(changes(stack.up())) == {"create"}
        if name == "prod":  # nothing starts before what it needs
            order = [thing for _, thing in provider.done]
            wanted = ["Namespace app-namespace", "StatefulSet database", "Job migration", "Deployment controller"]
            assert sorted(wanted, key=order.index) == wanted
            assert order.index("LimitRange sandbox-defaults") < order.index("ResourceQuota sandbox-quota")
            assert order.index("RoleBinding controller-role-binding") < order.index("Deployment controller")
        states = [file.read_text() for file in (tmp_path / "state").rglob("*.json")]
        assert any("ci-fixer-sandbox:infra:Passwords" in state for state in states)
        assert not any("generated-" in state for state in states)
        assert changes(stack.up()) == {}

        provider.done.clear()
        stack.set_config("ci-fixer-sandbox:maxRunning", auto.ConfigValue("7"))
        stack.up()
        assert set(provider.done) == CHANGED[name]

        for login, (anew, changed) in ROTATED[name].items():  # as docs/stacks.md says
            provider.done.clear()
            stack.up(replace=[f"**{login}-password"])
            anew = anew | {f"RandomPassword {login}-password"}
            assert set(provider.done) == {
                *((step, thing) for thing in anew for step in ("create", "delete")),
                *(("update", thing) for thing in changed),
            }
            made_or_changed = [thing for step, thing in provider.done if step != "delete"]
            migrated = next(thing for thing in made_or_changed if thing in ("Job migration", "Container migration"))
            takers = made_or_changed[made_or_changed.index(migrated) + 1 :]
            assert set(takers) == changed | (anew & {"Container app"})  # none has it before the database has
        assert changes(stack.up()) == {}

        if name == "prod":  # somebody else scales
            provider.done.clear()
            monkeypatch.setattr(program, "preflight", lambda config: Found(Cluster("it", "uid-1", autoscaler="theirs")))
            stack.set_config("ci-fixer-sandbox:replicas", auto.ConfigValue("5"))
            stack.up()
            assert provider.done == []

        if name == "prod":  # a context of that name is another cluster now
            provider.done.clear()
            monkeypatch.setattr(program, "preflight", lambda config: Found(Cluster("it", "uid-2")))
            for act in (
                stack.up,
                lambda: stack.up(refresh=True, run_program=True),
                lambda: stack.refresh(run_program=True),
                lambda: stack.destroy(run_program=True),
            ):
                with pytest.raises(auto.CommandError, match="stack prod belongs to the cluster whose kube-system"):
                    act()
            kinds = {thing.partition(" ")[0] for _, thing in provider.done}
            assert kinds <= {"Image", "RandomPassword"}  # a refresh reads what is in no cluster
            monkeypatch.setattr(program, "preflight", fake_preflight)

        provider.done.clear()
        if name == "prod":  # the wrong sandboxes would end
            stack.set_config("ci-fixer-sandbox:sandboxNamespace", auto.ConfigValue("elsewhere"))
            with pytest.raises(
                auto.CommandError, match="nothing was deleted: sandboxNamespace was 'ci-fixer-sandbox-prod"
            ):
                stack.destroy(run_program=True)
            stack.remove_config("ci-fixer-sandbox:sandboxNamespace")
        with pytest.raises(auto.CommandError, match="--run-program"):
            stack.destroy()
        assert provider.done == []
        stack.destroy(run_program=True)
        ends_in_order(name, provider.done)
        assert left_of(stack.export_stack().deployment) == []


def test_what_a_preflight_finds_stops_an_up_before_anything_is_made_and_keeps_nobody_from_destroying(
    tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, debug = providers
    faults: list[str] = ["the cluster has no StorageClass fast", "the context's user may not create pods"]
    left: dict[str, str] = {}

    def found(config: Config) -> Found:
        return Found(Cluster("it", "uid-1", left=left), tuple(faults))

    monkeypatch.setattr(program, "preflight", found)
    with untidy():
        stack = made("prod", tmp_path, debug)
        for act in (stack.preview, stack.up):
            with pytest.raises(auto.CommandError) as raised:
                act()
            assert [fault for fault in faults if fault not in str(raised.value)] == []
        assert provider.done == []
        faults.clear()
        left[APP] = f"namespace {APP} exists, and the state does not know it"
        with pytest.raises(auto.CommandError, match=left[APP]):
            stack.preview()
        left.clear()
        stack.up()
        left[APP] = "never said: the state knows it"
        assert changes(stack.up()) == {}
        provider.done.clear()
        faults.append("the database's volume has the class slow, which cannot change")
        with pytest.raises(auto.CommandError, match=faults[0]):
            stack.up()
        assert provider.done == []
        stack.refresh(run_program=True)
        stack.destroy(run_program=True)
        assert left_of(stack.export_stack().deployment) == []


@pytest.mark.parametrize("name", STACKS)
def test_a_new_stack_takes_nothing_that_another_state_has_and_one_that_is_up_is_not_refused(
    name: str, tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, debug = providers
    taken = ["somebody has it"]
    cluster = Cluster("it", "uid-1") if name == "prod" else None
    monkeypatch.setattr(program, "preflight", lambda config: Found(cluster, taken=tuple(taken)))
    with untidy():
        stack = made(name, tmp_path, debug)
        for act in (stack.preview, stack.up, stack.up):
            with pytest.raises(auto.CommandError, match=taken[0]):
                act()
        assert provider.done == []
        taken.clear()
        stack.up()
        taken.append("it is the stack's own")
        assert changes(stack.up()) == {}
        stack.destroy(run_program=True)
        order = [thing for step, thing in provider.done if step == "delete"]
        assert {one.partition(" ")[0] for one in order[-3:]} == {"RandomPassword"}  # what is noted goes last
        assert left_of(stack.export_stack().deployment) == []


def test_a_change_that_would_delete_rows_is_said_in_the_preview_and_another_target_is_refused(
    tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    with untidy():
        stack = made("prod", tmp_path, providers[1])
        stack.up()
        stack.set_config("ci-fixer-sandbox:namespace", auto.ConfigValue("elsewhere"))
        said = stack.preview().stdout
        assert f"ci-fixer-sandbox:namespace changes from {APP} to elsewhere" in said
        assert "the database in it is deleted with its rows" in said
        assert "databasePassword changes" not in said
        stack.set_config("ci-fixer-sandbox:databasePassword", auto.ConfigValue("hidden", secret=True))
        assert "databasePassword changes only the clients" in stack.preview().stdout
        stack.remove_config("ci-fixer-sandbox:databasePassword")
        stack.set_config("ci-fixer-sandbox:postgresImage", auto.ConfigValue("postgres:16.1"))
        with pytest.raises(auto.CommandError, match="the files of Postgres 15, which Postgres 16 cannot read"):
            stack.preview()
        stack.remove_config("ci-fixer-sandbox:postgresImage")
        for key, value in (("target", "docker"), ("dockerSocketGroup", "0")):
            stack.set_config(f"ci-fixer-sandbox:{key}", auto.ConfigValue(value))
        for key in ("registry", "kubeContext", "namespace"):
            stack.remove_config(f"ci-fixer-sandbox:{key}")
        with pytest.raises(auto.CommandError, match="target cannot become docker: stack prod is up on kubernetes"):
            stack.preview()


def test_what_left_the_program_goes_with_what_ends_before_it(
    tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    provider, debug = providers
    with untidy():
        stack = made("prod", tmp_path, debug)
        stack.up()
        provider.done.clear()
        stack.set_config(
            "ci-fixer-sandbox:databaseUrl", auto.ConfigValue("postgresql://me:p@db.example/it", secret=True)
        )
        stack.set_config("ci-fixer-sandbox:databaseCidrs", auto.ConfigValue('["10.1.0.0/16"]'))
        stack.preview()
        stack.up()
        order = [thing for _, thing in provider.done]
        assert order.index("free_volume") < order.index("PersistentVolumeClaim database-volume")
        assert changes(stack.up()) == {}
        stack.destroy(run_program=True)
        assert left_of(stack.export_stack().deployment) == []


@pytest.mark.parametrize("name", STACKS)
def test_what_does_not_get_ready_ends_an_up_there_and_the_next_goes_on(
    name: str,
    tmp_path: Path,
    providers: tuple[FakeProvider, str],
    waits: FakeWaits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    provider, debug = providers
    with untidy():
        stack = made(name, tmp_path, debug)
        for place, form in enumerate(STARTS[name].values()):
            waits.broken = form
            with pytest.raises(
                auto.CommandError, match=r"is not ready: it ended \(exit code 1\): no such host"
            ) as raised:
                stack.up()
            assert "Traceback" not in str(raised.value)
            started = [thing for act, thing in provider.done if act == "create" and thing in STARTS[name]]
            assert started == list(STARTS[name])[: place + 1]
        stack.preview()
        waits.broken = None
        stack.up()
        waits.waited.clear()
        assert changes(stack.up()) == {}
        stack.set_config("ci-fixer-sandbox:maxRunning", auto.ConfigValue("7"))
        stack.up()
        assert len(waits.waited) == 1  # what was changed is waited for, and nothing else
        waits.broken = "."
        stack.refresh(run_program=True)
        stack.destroy(run_program=True)
        assert len(waits.waited) == 1
        assert left_of(stack.export_stack().deployment) == []


def test_every_key_is_taken_as_the_command_sets_it(
    tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    tried = {key for keys in (*STACKS.values(), *KEYS.values()) for key in keys}
    assert EVERY_KEY - {"storageClass", "storageSize"} == tried
    with untidy():
        for name, keys in KEYS.items():
            (tmp_path / name).mkdir()
            stack = made(name, tmp_path / name, providers[1])
            for key, value in keys.items():
                stack.set_config(f"ci-fixer-sandbox:{key}", auto.ConfigValue(value, secret=key in SECRETS))
            assert {str(kind) for kind in stack.preview().change_summary} == {"create"}


@pytest.mark.parametrize("name", STACKS)
def test_what_was_deleted_by_hand_is_made_again(
    name: str, tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    provider, debug = providers
    with untidy():
        stack = made(name, tmp_path, debug)
        stack.up()
        for mend in (
            lambda: stack.up(refresh=True, run_program=True),
            lambda: (stack.refresh(run_program=True), stack.up()),
        ):
            provider.gone, provider.done = set(DELETED[name]), []
            mend()
            assert provider.gone == set()
            assert DELETED[name] <= {thing for deed, thing in provider.done if deed == "create"}
            assert changes(stack.up()) == {}


def test_another_password_is_the_databases_before_it_is_the_controllers(
    tmp_path: Path, providers: tuple[FakeProvider, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "preflight", fake_preflight)
    provider, debug = providers
    with untidy():
        stack = made("prod", tmp_path, debug)
        stack.up()
        provider.done.clear()
        stack.up(replace=["**controller-password"])
    wanted = [
        ("create", "Secret migration-credentials"),
        ("create", "Job migration"),
        ("update", "Secret controller-credentials"),  # the same: an earlier revision of the Deployment finds it
        ("update", "Deployment controller"),
    ]
    assert [one for one in provider.done if one in wanted] == wanted
    assert ("update", "StatefulSet database") not in provider.done
