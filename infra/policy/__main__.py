"""The rules as a policy pack: pulumi preview --policy-pack infra/policy."""

from __future__ import annotations

from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)

from infra.policy.rules import RULES, Rule
from infra.policy.secret_values import plain_secrets


def _policy(rule: Rule) -> ResourceValidationPolicy:
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for fault in rule(args.resource_type, args.props):
            report(fault, None)

    name = rule.__name__.replace("_", "-")
    return ResourceValidationPolicy(name=name, description=(rule.__doc__ or name).strip(), validate=validate)


PolicyPack(
    name="ci-fixer-sandbox",
    enforcement_level=EnforcementLevel.MANDATORY,
    # Which values are secret a pack is not told: the tests alone can see to that.
    policies=[_policy(rule) for rule in RULES if rule is not plain_secrets],
)
