"""The URNs of both stacks stay: to the engine, another one is a resource to delete and a new one to create."""

from __future__ import annotations

from tests.support.mocked_stack import ROOT, Deploy

URNS = ROOT / "tests" / "infra" / "urns.txt"


def known(stack: str) -> list[str]:
    """The URNs of a stack that versions before this one created."""
    return [urn for urn in URNS.read_text().splitlines() if urn.startswith(f"urn:pulumi:{stack}::")]


def test_an_up_of_an_older_dev_stack_finds_every_resource_again(dev: Deploy) -> None:
    recorded = dev()
    assert recorded.names("Network") == ["network"]
    assert recorded.urns == known("dev")


def test_an_up_of_an_older_prod_stack_finds_every_resource_again(prod: Deploy) -> None:
    recorded = prod(requesterNamespaces=["my-app"])
    assert recorded.names("Deployment") == ["controller"]
    assert recorded.urns == known("prod")
