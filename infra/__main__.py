"""What Pulumi runs."""

from __future__ import annotations

from infra.program import main

main()
