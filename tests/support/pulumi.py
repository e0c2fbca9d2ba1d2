"""The pulumi command on a copy of this project, with a state of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.engines import missing, need_image

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".git", ".venv", ".work", "*_cache", ".hypothesis", "__pycache__", "build")
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PROVIDERS = ("docker", "kubernetes", "random")
POSTGRES = os.environ.get("TEST_POSTGRES_IMAGE", "localhost:5000/postgres:15")  # one that engine and cluster can pull


@cache
def pulumi_trouble() -> str | None:
    """What is missing to run stacks for real."""
    for command in ("pulumi", "pulumi-language-python"):
        if shutil.which(command) is None:
            return f"the command {command} is not there (https://www.pulumi.com/docs/install/)"
    listed = subprocess.run(["pulumi", "plugin", "ls", "--json"], capture_output=True, text=True)
    there = {one["name"] for one in json.loads(listed.stdout or "[]")}
    lacking = [name for name in PROVIDERS if name not in there and shutil.which(f"pulumi-resource-{name}") is None]
    return f"the provider plugins of {', '.join(lacking)} are not there: pulumi install" if lacking else None


def need_pulumi() -> None:
    """Skips where stacks cannot be run for real. Docker is there."""
    why = pulumi_trouble()
    if why is not None:
        missing("pulumi-plugins", why)
    need_image(POSTGRES, "pulumi-plugins")


def environment(state: Path) -> dict[str, str]:
    """What the command is told: to keep its state there, and to fetch nothing."""
    return {
        "PULUMI_BACKEND_URL": f"file://{state}",
        "PULUMI_CONFIG_PASSPHRASE": "a test's",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }


def left_of(deployment: Mapping[str, Any] | None) -> list[str]:
    """Every resource in an exported state but the stack itself."""
    resources = (deployment or {}).get("resources") or []
    return [one["urn"] for one in resources if one["type"] != "pulumi:pulumi:Stack"]


@dataclass
class Stack:
    """One stack of a copy of this project."""

    name: str
    directory: Path

    @classmethod
    def make(cls, name: str, directory: Path, config: dict[str, str], program: Path = ROOT) -> Stack:
        """A new stack with this configuration and nothing in it."""
        (directory / "state").mkdir()
        stack = cls(name, directory / "project")
        stack.takes(program)
        stack.run("stack", "init", name)
        for key, value in config.items():
            stack.set(key, value)
        return stack

    def takes(self, program: Path) -> None:
        """Has a copy of that project, as it stands, from now on; its state and configuration stay."""
        own = Path(f"Pulumi.{self.name}.yaml")
        kept = (self.directory / own).read_text() if (self.directory / own).exists() else None
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(program, self.directory, ignore=shutil.ignore_patterns(*LEFT_OUT, "Pulumi.*.yaml"))
        (self.directory / ".venv").symlink_to(ROOT / ".venv")
        if kept is not None:
            (self.directory / own).write_text(kept)

    def run(self, *words: str, fails: bool = False) -> str:
        """What the command writes, which succeeds (or `fails`)."""
        command = ["pulumi", *words, *(() if words[:2] == ("stack", "init") else ("--stack", self.name))]
        done = subprocess.run(
            [*command, "--non-interactive"], cwd=self.directory, env=self._environment, capture_output=True, text=True
        )
        written = done.stdout + done.stderr
        assert bool(done.returncode) == fails, written
        return written if fails else done.stdout

    def set(self, key: str, value: str) -> None:
        """Sets a key of the configuration."""
        self.run("config", "set", key, value)

    def up(self, *flags: str) -> str:
        """Brings it up."""
        return self.run("up", "--yes", "--skip-preview", *flags)

    def umask(self, mask: int) -> None:
        """Gives the files that images are built from the modes of a checkout with this umask."""
        for part in ("controller", "images"):
            for path in (self.directory / part).rglob("*"):
                path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)

    def destroy(self) -> str:
        """Ends it as a user does; where nothing of it is left, without its program, whose configuration may be bad."""
        left = left_of(json.loads(self.run("stack", "export"))["deployment"])
        return self.run("destroy", "--yes", "--skip-preview", *(["--run-program"] if left else []))

    def outputs(self) -> dict[str, Any]:
        """All outputs, secrets in clear."""
        found: dict[str, Any] = json.loads(self.run("stack", "output", "--json", "--show-secrets"))
        return found

    def request(self) -> str:
        """The sandbox that the example request asks for, run as a user pastes it."""
        found = ID.search(self.shell(self.run("stack", "output", "example_request")))
        assert found is not None
        return found[0]

    def refuses(self, key: str, value: str, words: str) -> None:
        """Sees that with this key nothing is made, and that the error says so without a stack trace."""
        self.set(key, value)
        written = self.run("up", "--yes", "--skip-preview", fails=True)
        assert words in written
        assert "Traceback" not in written
        assert left_of(json.loads(self.run("stack", "export"))["deployment"]) == []

    @property
    def _environment(self) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(self.directory)
        }  # the copy's modules, and not those that the environment has installed
        return os.environ | environment(self.directory.parent / "state") | own

    def shell(self, line: str) -> str:
        """What a line of shell writes in the project's directory, which succeeds."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.directory, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shows(self, secrets: Sequence[str]) -> list[str]:
        """Which of these stand in its state or history in clear."""
        files = [file for file in (self.directory.parent / "state").rglob("*") if file.is_file()]
        texts = [file.read_text(errors="replace") for file in files] + [self.run("stack", "export")]
        assert len(texts) > 2
        return [secret for secret in secrets if any(secret in text for text in texts)]
