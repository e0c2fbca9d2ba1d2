"""Verbs for people, beside the controller: they ask and read as any requester does."""

from __future__ import annotations

import argparse

from controller.errors import SandboxError
from controller.tools.explain import explain
from controller.tools.submit import add_options, submit


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `submit`, `explain` and `demo` to the command line."""
    asking = verbs.add_parser("submit", help="ask for one sandbox, wait for it, and end as it did")
    add_options(asking)
    asking.set_defaults(run=submit)
    explaining = verbs.add_parser("explain", help="tell all about one sandbox")
    explaining.add_argument("id", help="the id that its insert returned")
    explaining.set_defaults(run=explain)
    demo = verbs.add_parser("demo", help="show it all on a Postgres of its own, which is gone at the end")
    demo.add_argument("--backend", choices=("docker", "process"), help="default: docker where an engine answers")
    demo.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> int:
    """`demo`: with packages that nothing else needs."""
    try:
        from controller.tools.demo import demo

        return demo(options.backend)
    except ModuleNotFoundError as error:
        raise SandboxError(f"{error.name} is missing: `make setup`, or pip install 'ci-fixer-sandbox[demo]'") from error
