"""Which tests stay on one worker of pytest-xdist: what they share is costly to make.

By path, since pytest-xdist 3.8 does not see its own marker `xdist_group` under pytest 9.2.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TOGETHER = (  # beginnings of test ids; the first that fits counts
    "tests/integration/test_migrate_elsewhere.py",
    "tests/integration/test_plans.py",
    "tests/integration/test_sandbox_image.py",
    "tests/integration/test_upgrade.py",
)


class Together(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Gives each worker one test after another, or all of a group; the largest groups first."""

    def _split_scope(self, nodeid: str) -> str:
        return next((beginning for beginning in TOGETHER if nodeid.startswith(beginning)), nodeid)
