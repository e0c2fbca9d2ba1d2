"""A thin controller: rows of a Postgres table become sandboxes, run once, isolated."""

from __future__ import annotations
