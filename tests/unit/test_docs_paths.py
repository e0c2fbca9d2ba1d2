"""Every path, module and link that the documents name exists, and every decision is in the index."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HISTORY = ROOT / "CHANGELOG.md"  # names what versions before had
FOLDERS = ("controller", "docs", "images", "infra", "tests", ".ci", ".github")
FILE = re.compile(r"\.?[\w*][\w.*-]*(/[\w.*-]+)*\.(py|sql|sh|md|toml|lock|yaml|yml)")
FOLDER = re.compile(rf"({'|'.join(map(re.escape, FOLDERS))})(/[\w.-]+)*/?")
MODULE = re.compile(r"(controller|infra|tests)(\.\w+)+")


def files() -> list[str]:
    """The repository's files and folders, relative to its root."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [str(path.relative_to(ROOT)) for path in [*ROOT.iterdir(), *inside]]


def prose(document: Path) -> str:
    """Its text without indented and fenced blocks, which quote other files."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def missing(document: Path, there: list[str]) -> list[str]:
    """The names in backticks that look like a path or a module and lead nowhere. A path may be given by its end."""
    found = []
    for name in re.findall(r"`([^`\n]+)`", prose(document)):
        if MODULE.fullmatch(name) and not name.endswith((".py", ".md")):
            path = name.replace(".", "/")
            if path not in there and f"{path}.py" not in there:
                found.append(name)
        elif FILE.fullmatch(name) or FOLDER.fullmatch(name):
            pattern = name.rstrip("/").replace("STACK", "*")
            if not any(fnmatch(path, pattern) or fnmatch(path, f"*/{pattern}") for path in there):
                found.append(name)
    return found


def anchors(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_path_that_a_document_names_exists() -> None:
    there = files()
    gone = {str(each.relative_to(ROOT)): missing(each, there) for each in DOCS if each != HISTORY}
    assert {document: names for document, names in gone.items() if names} == {}


def dead_links(document: Path) -> list[str]:
    """Its links to files or headings of the repository that are not there."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not link.startswith("https://") and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    return dead


def test_every_link_of_a_document_leads_somewhere() -> None:
    dead = {str(each.relative_to(ROOT)): dead_links(each) for each in DOCS}
    assert {document: links for document, links in dead.items() if links} == {}


def test_the_index_of_decisions_names_each_once() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"^- \[[\w-]+\]\(([\w-]+\.md)\): ", (folder / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(linked) == sorted(path.name for path in folder.glob("*.md") if path.name != "README.md")


def test_the_layers_of_the_document_are_those_of_the_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each for each in contracts if each.get("containers") == ["controller"])["layers"]
    checked = [name for layer in layers for name in layer.split(" | ")]
    text = (ROOT / "docs" / "architecture.md").read_text().split("the contracts are in `pyproject.toml`")[1]
    block = text.split("\n\n")[1]
    written = dict.fromkeys(word for word in re.findall(r"\w+", block) if word in checked)
    assert list(written) == checked


def test_what_is_gone_is_found(tmp_path: Path) -> None:
    document = tmp_path / "text.md"
    document.write_text(
        "`controller/gone.py`, `db/store.py`, `controller.gone`, `controller.db.store`, `decide`, `tests/`"
    )
    assert missing(document, files()) == ["controller/gone.py", "controller.gone"]
