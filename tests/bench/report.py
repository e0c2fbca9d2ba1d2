"""One line a figure, in a table that can be kept."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """What was asked, what was measured, and the floor beside it."""

    what: str
    measured: str
    floor: str
    asked: str
    met: bool


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1000:.1f} ms"


def show(figure: Figure) -> None:
    """Prints one figure as soon as it is there."""
    verdict = "met   " if figure.met else "MISSED"
    print(f"{verdict} {figure.what}: {figure.measured} (asked: {figure.asked}; floor: {figure.floor})", flush=True)


def write(figures: Sequence[Figure], path: Path) -> None:
    """Writes the table as Markdown."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.platform()}, Python {platform.python_version()}",
        "",
        "| what | asked | measured | floor in the same run | met |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {one.what} | {one.asked} | {one.measured} | {one.floor} | {'yes' if one.met else 'NO'} |"
            for one in figures
        ),
    ]
    path.write_text("\n".join(lines) + "\n")
    print(f"\nwritten to {path}")
