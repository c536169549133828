"""Hands the rules to Pulumi."""

from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)

from guard_rails.rules import RULES, Rule


def serve() -> None:
    """Answers the engine until it ends."""
    PolicyPack(name="gitlab-runners", policies=[_policy(rule) for rule in RULES])


def _policy(rule: Rule) -> Any:
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for violation in rule.violations(args.resource_type, args.props, args.get_config()):
            report(violation)

    return ResourceValidationPolicy(
        name=rule.name,
        description=f"{rule.rule}. {rule.reason}.",
        validate=validate,
        enforcement_level=EnforcementLevel(rule.level),
        config_schema=PolicyConfigSchema({name: dict(schema) for name, schema in rule.options.items()}),
        remediation_steps=rule.fix,
    )
