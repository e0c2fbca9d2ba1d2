"""Passwords: generated once for a stack, and secret in every input and output."""

from __future__ import annotations

import pulumi
import pulumi_random as random

LENGTH = 32  # letters and digits: 190 bits, and nothing that a URL or a shell would read otherwise


class Passwords(pulumi.ComponentResource):
    """The passwords of the owner (generated unless it is given), the controller and the requester."""

    owner: pulumi.Output[str]
    controller: pulumi.Output[str]
    requester: pulumi.Output[str]

    def __init__(
        self, name: str, owner: pulumi.Output[str] | None = None, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("ci-fixer-sandbox:infra:Passwords", name, None, opts)
        self.owner = owner if owner is not None else self._made("owner")
        self.controller = self._made("controller")
        self.requester = self._made("requester")
        self.register_outputs({})

    def _made(self, login: str) -> pulumi.Output[str]:
        options = pulumi.ResourceOptions(parent=self)
        made = random.RandomPassword(f"{login}-password", length=LENGTH, special=False, opts=options)
        return pulumi.Output.secret(made.result)


def secret(*parts: pulumi.Input[str]) -> pulumi.Output[str]:
    """Concatenates the parts; the result is secret."""
    return pulumi.Output.secret(pulumi.Output.concat(*parts))
