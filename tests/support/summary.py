"""What a run of the tests proved: how many passed, were skipped and failed, by tier and by engine, and why skipped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ENGINES = ("kubernetes", "docker", "process", "memory")
ENGINE_TIERS = ("conformance", "integration", "chaos", "e2e")  # the others start no engine
OUTCOMES = {"passed": "passed", "skipped": "skipped", "failed": "failed", "error": "failed"}


def lines(stats: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The lines of the summary, from the reports of the terminal reporter by their category."""
    tiers: dict[str, Counter[str]] = {}
    engines: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for category, outcome in OUTCOMES.items():
        for report in stats.get(category, ()):
            tiers.setdefault(tier_of(report.nodeid), Counter())[outcome] += 1
            if engine := engine_of(report.nodeid):
                engines.setdefault(engine, Counter())[outcome] += 1
            if outcome == "skipped":
                reasons[reason_of(report)] += 1
    for title, groups in (("tier", tiers), ("engine", engines)):
        if groups:
            yield f"{title:<12} {'passed':>7} {'skipped':>7} {'failed':>7}"
            for name, counts in sorted(groups.items()):
                yield f"{name:<12} {counts['passed']:>7} {counts['skipped']:>7} {counts['failed']:>7}"
    for reason, count in reasons.most_common():
        yield f"skipped {count:>4}: {reason}"


def tier_of(nodeid: str) -> str:
    """The directory of a test below tests/."""
    parts = nodeid.partition("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def engine_of(nodeid: str) -> str | None:
    """The engine that a test is about, by its parameters, else by its file's name."""
    if tier_of(nodeid) not in ENGINE_TIERS:
        return None
    parameters, file = nodeid.partition("[")[2], nodeid.partition("::")[0].rpartition("/")[2]
    by_preference = [re.split(r"[\W_]+", part) for part in (parameters, file)]
    if any("fake" in words for words in by_preference):
        return "fake cluster"
    return next((engine for words in by_preference for engine in ENGINES if engine in words), None)


def reason_of(report: Any) -> str:
    """Why a test was skipped, in one line."""
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason: str = told.removeprefix("Skipped: ").splitlines()[0]
    return reason
