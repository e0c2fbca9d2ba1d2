"""What people expect of the sandbox image, as a sandbox has it: uid 1000, a read-only root, no network."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import pytest

from controller.demo.show import CHECKOUT, IMAGE
from controller.image_context import stage
from controller.protocol.model import State
from tests.support.engines import Engine, make_engine

DOCUMENT = Path(__file__).parents[2] / "docs" / "sandbox_image.md"
WHEEL = r"""
python3 - <<'END'
import zipfile

with zipfile.ZipFile("hello-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("hello.py", "def main():\n    print('hello from pip')\n")
    wheel.writestr("hello-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: hello\nVersion: 1\n")
    wheel.writestr("hello-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("hello-1.dist-info/entry_points.txt", "[console_scripts]\nhello-pip = hello:main\n")
    wheel.writestr("hello-1.dist-info/RECORD", "")
END
"""
PACKAGE = r"""
mkdir -p package
echo '{"name": "hello", "version": "1.0.0", "bin": {"hello-npm": "hello.js"}}' >package/package.json
printf '#!/usr/bin/env node\nconsole.log("hello from npm")\n' >package/hello.js
(cd package && npm pack)
"""
BY_PIP, BY_NPM = "hello from pip", "hello from npm"
EXPECTED = {
    "pytest -q": ("echo 'def test(): assert True' >test_it.py && pytest -q", "1 passed"),
    "pip install X, then X": (WHEEL + "pip install --no-index ./*.whl && hello-pip", BY_PIP),
    "pip install in a venv": (
        WHEEL + "python -m venv v && v/bin/pip install --no-index ./*.whl && v/bin/hello-pip",
        BY_PIP,
    ),
    "npm install -g X, then X": (PACKAGE + "npm install -g ./package/*.tgz && hello-npm", BY_NPM),
    "npm ci": (
        PACKAGE + "mkdir app && cd app && npm init -y && npm install ../package/*.tgz"
        " && rm -r node_modules && npm ci && npx hello-npm",
        BY_NPM,
    ),
    "cc a.c": ("printf 'int main(void) { return 7; }' >a.c && cc a.c && ./a.out || echo $?", "7"),
    "make and c++": (
        "printf '#include <iostream>\nint main() { std::cout << \"from c++\"; }' >a.cc && make a && ./a",
        "from c++",
    ),
    "a C extension": (
        "printf '#include <Python.h>\nint x;' >x.c"
        " && cc $(python3-config --includes) -fPIC -shared x.c -o x.so && echo built",
        "built",
    ),
    "git commit": (
        "git init r && cd r && echo x >f && git add f && git commit -m 'žluť' && git log --format='%an %s %D'",
        "CI-Fixer sandbox žluť HEAD -> main",
    ),
    "git in the work directory": (
        "git init && echo x >f && git add f && git commit -m y && git status",
        "nothing to commit",
    ),
    "UTF-8": ("python -c 'import sys; print(sys.argv[1])' 'kůň 🐎'", "kůň 🐎"),
    "temporary files": ("python -c 'import tempfile; print(tempfile.mkstemp())'", "/"),
    "the user's name": ("whoami; cd ~ && pwd", "sandbox\n/work"),
}


@pytest.fixture(scope="module")
def built() -> None:
    """The image, as `make demo` and the stacks build it; it stays, as theirs does."""
    make_engine("docker", Path())
    build = ["docker", "build", "-q", "-t", IMAGE, str(stage("sandbox", CHECKOUT))]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def engine(built: None, tmp_path: Path) -> Engine:
    """The Docker engine, on which every test here deletes its own run."""
    made = make_engine("docker", tmp_path)
    made.image = IMAGE
    return made


def output_of(engine: Engine, command: str) -> str:
    """What that command writes; it must succeed."""

    async def go() -> str:
        async with engine.backend() as watched:
            launch = engine.launch(command, memory_mib=1024, disk_mib=1024)
            seen = await watched.run(launch)
            output = (await watched.backend.output(launch.key, seen.run_uid, 1 << 20)).tail.decode()
            await watched.backend.delete(launch.key, seen.run_uid)
            assert seen.outcome is not None
            assert seen.outcome.state is State.SUCCEEDED, output
            return output

    return asyncio.run(go())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", EXPECTED)
def test_what_a_newcomer_types_works(engine: Engine, what: str) -> None:
    command, expected = EXPECTED[what]
    assert expected in output_of(engine, command)


@pytest.mark.timeout(900)
def test_the_document_tells_each_tools_version(engine: Engine) -> None:
    rows = re.findall(r"^\| (`.*?`) \| ([\d.]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    told = {tool: version for tools, version in rows for tool in re.findall(r"`([^`]+)`", tools)}
    assert told.keys() >= {"python3", "pip", "pytest", "node", "npm", "cc", "make", "git"}
    said = output_of(engine, "\n".join(f"echo {tool} $({tool} --version 2>&1 | head -n 1)" for tool in told))
    found = dict(line.split(" ", 1) for line in said.splitlines())
    wrong = {
        tool: found[tool]
        for tool, version in told.items()
        if not re.search(rf"(?<!\d){re.escape(version)}(?!\d)", found[tool])
    }
    assert not wrong
