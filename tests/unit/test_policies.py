"""Each policy by itself: what it refuses, what it lets pass, and what it says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from guard_rails.reference import FOLDER, reference
from guard_rails.rules import (
    FLEET,
    INSTANCE,
    REGISTRATION,
    REMOTE_IMAGE,
    RULES,
    SECURITY_GROUP_RULE,
    USER_RUNNER,
    VIRTUAL_MACHINE,
    WORKER_GROUP,
    Rule,
)

from renderers.cloud_init import CloudInit, user_data
from scripts.stack import policy_pack

ROOT = Path(__file__).parents[2]
Properties = dict[str, Any]
DIGEST = f"gitlab/gitlab-runner@sha256:{'0' * 64}"
HOST_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
MACHINE = user_data(
    CloudInit(user="debian", mtu=1450, install_docker=True, host_key_private=HOST_KEY, host_key_public="ssh-ed25519 A")
)


def rule_of(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


def ingress(prefix: str | None, **more: Any) -> Properties:
    rule = {"direction": "ingress", "portRangeMin": 22, "portRangeMax": 22, "remoteIpPrefix": prefix}
    return {key: value for key, value in rule.items() if value is not None} | more


def runner(**more: Any) -> Properties:
    return {"runnerType": "project_type", "locked": True, "accessLevel": "ref_protected"} | more


def registration(**more: Any) -> Properties:
    return {"scope": "project_type", "builds": "none", "image": "debian:13-slim"} | more


def owned(**more: Any) -> Properties:
    return {"flavorId": "1", "metadata": {"team": "payments", "environment": "dev"}} | more


def fleet(hosts: int, workers: int) -> Properties:
    # Numbers of Pulumi are such.
    return {"team": "payments", "hosts": float(hosts), "workers": float(workers)}


UNKNOWN = {"builds": "none", "image": "debian:13-slim"}
BAD = [
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("0.0.0.0/0"), "port 22 is open to 0.0.0.0/0"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("0.0.0.0/1"), "wider than /16"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("8.0.0.0/7"), "wider than /16"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("::/0"), "wider than /32"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("fc00::/6"), "wider than /32"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress(None), "port 22 is open to everybody"),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, {"direction": "ingress"}, "every port is open to everybody"),
    (
        "no-privileged-builds-on-shared-runner",
        REGISTRATION,
        registration(scope="instance_type", builds="dind"),
        "an instance runner has privileged builds",
    ),
    ("no-privileged-builds-on-shared-runner", REGISTRATION, UNKNOWN | {"builds": "dind"}, "a token of its own"),
    ("runner-locked-and-protected", USER_RUNNER, runner(locked=False), "is not locked to its project"),
    ("runner-locked-and-protected", USER_RUNNER, runner(accessLevel="not_protected"), "unprotected branches"),
    ("runner-locked-and-protected", REGISTRATION, UNKNOWN, "nobody sees here"),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": "gitlab/gitlab-runner:latest"}, "gitlab-runner:latest can be"),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": "gitlab/gitlab-runner:v19.4"}, "another image tomorrow"),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": "registry.example.com:5000/runner"}, "another image tomorrow"),
    ("job-image-pinned", REGISTRATION, registration(), "debian:13-slim can be another image tomorrow"),
    ("flavor-allowed", VIRTUAL_MACHINE, {"flavor": "m1.huge"}, "flavor m1.huge is none of m1.small, m1.large"),
    ("flavor-allowed", WORKER_GROUP, {"flavor": "m1.huge"}, "flavor m1.huge is none of m1.small, m1.large"),
    ("image-allowed", VIRTUAL_MACHINE, {"image": "mine"}, "image mine is none of debian-13, debian-12"),
    ("image-allowed", WORKER_GROUP, {"image": "mine"}, "image mine is none of debian-13, debian-12"),
    ("plugin-allowed", WORKER_GROUP, {"plugin": "ghcr.io/me/p:1.0"}, "plugin ghcr.io/me/p:1.0 is none of"),
    ("plugin-allowed", WORKER_GROUP, {"plugin": "example.org:5000/p:1.0"}, "is none of example.org, pinned:1.0"),
    ("plugin-allowed", WORKER_GROUP, {"plugin": "pinned:1.1"}, "plugin pinned:1.1 is none of"),
    ("machine-cap", FLEET, fleet(2, 500), "there may be 2 hosts and 500 workers at once, and 20 machines are the most"),
    ("machine-cap", FLEET, fleet(21, 0), "there may be 21 hosts and 0 workers at once"),
    ("machine-tagged", WORKER_GROUP, {"metadata": {"team": "payments"}}, "metadata lacks environment"),
    ("boot-image-by-id", WORKER_GROUP, {"image": "debian-13"}, "image debian-13 is a name"),
    ("host-cap", INSTANCE, owned(name="payments-dev-5"), "machine 5 of the stack, and 4 is the most"),
    ("host-cap", INSTANCE, owned(name="payments-dev-12"), "machine 12 of the stack, and 4 is the most"),
    ("machine-tagged", INSTANCE, {"metadata": {"team": "payments"}}, "metadata lacks environment"),
    ("machine-tagged", INSTANCE, {"flavorId": "1"}, "metadata lacks team, environment"),
    ("no-secret-in-user-data", INSTANCE, {"userData": f"{MACHINE}# glpat-{'x' * 20}\n"}, "a token of GitLab"),
    ("no-secret-in-user-data", INSTANCE, {"userData": f"#!/bin/sh\nT=glrt-t1_{'x' * 20}\n"}, "a token of GitLab"),
    ("no-secret-in-user-data", INSTANCE, {"userData": f"{MACHINE}x: AKIA{'A' * 16}\n"}, "an access key of AWS"),
    ("no-secret-in-user-data", INSTANCE, {"userData": f"{MACHINE}x: http://u:pw@proxy\n"}, "a password in a URL"),
    ("no-secret-in-user-data", INSTANCE, {"userData": json.dumps({"x": HOST_KEY})}, "a private key"),
    ("no-secret-in-user-data", INSTANCE, {"userData": f"#!/bin/sh\n{HOST_KEY}"}, "a private key"),
    ("boot-image-by-id", VIRTUAL_MACHINE, {"image": "debian-13"}, "image debian-13 is a name"),
]
GOOD = [
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("192.0.2.0/24")),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("10.0.0.0/8")),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress("2001:db8::/32")),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, ingress(None, remoteGroupId="a")),
    ("no-ssh-from-anywhere", SECURITY_GROUP_RULE, {"direction": "egress"}),
    ("no-privileged-builds-on-shared-runner", REGISTRATION, registration(builds="dind")),
    ("no-privileged-builds-on-shared-runner", REGISTRATION, registration(scope="instance_type", builds="rootless")),
    ("runner-locked-and-protected", USER_RUNNER, runner()),
    ("runner-locked-and-protected", USER_RUNNER, runner(runnerType="group_type", locked=False)),
    ("runner-locked-and-protected", REGISTRATION, registration()),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": DIGEST}),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": "gitlab/gitlab-runner:v19.4.1"}),
    ("runner-version-pinned", REMOTE_IMAGE, {"name": "gitlab/gitlab-runner:alpine-v19.4.1"}),
    ("job-image-pinned", REGISTRATION, registration(image="debian:trixie-20261103-slim")),
    ("job-image-pinned", REGISTRATION, registration(image="registry.example.com:5000/job:c1d26dbc2e9a")),
    ("flavor-allowed", VIRTUAL_MACHINE, {"flavor": "m1.large"}),
    ("flavor-allowed", WORKER_GROUP, {"flavor": "m1.large"}),
    ("image-allowed", VIRTUAL_MACHINE, {"image": "debian-12"}),
    ("image-allowed", WORKER_GROUP, {"image": "debian-13"}),
    ("plugin-allowed", WORKER_GROUP, {"plugin": "example.org:1.0"}),
    ("plugin-allowed", WORKER_GROUP, {"plugin": "pinned:1.0"}),
    ("machine-cap", FLEET, fleet(2, 18)),
    ("machine-cap", FLEET, {}),
    ("machine-tagged", WORKER_GROUP, owned()),
    ("boot-image-by-id", WORKER_GROUP, {"image": "5c8ba6fd-4c6c-4d4f-a8f4-6f2d6bb4a1c0"}),
    ("host-cap", INSTANCE, owned(name="payments-dev-4")),
    ("machine-tagged", INSTANCE, owned()),
    ("no-secret-in-user-data", INSTANCE, {"userData": MACHINE}),
    ("no-secret-in-user-data", INSTANCE, {}),
    ("boot-image-by-id", VIRTUAL_MACHINE, {"image": "5c8ba6fd-4c6c-4d4f-a8f4-6f2d6bb4a1c0"}),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "flavor-allowed": {"flavors": ["m1.small", "m1.large"]},
    "image-allowed": {"images": ["debian-13", "debian-12"]},
    "plugin-allowed": {"plugins": ["example.org", "pinned:1.0"]},
}


def identified(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case, id=f"{case[0]}-{number}") for number, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "type_", "properties", "line"), identified(BAD))
def test_a_policy_refuses(name: str, type_: str, properties: Properties, line: str) -> None:
    rule = rule_of(name)
    (violation,) = rule.violations(type_, properties, OPTIONS.get(name))
    assert line in violation
    assert violation.endswith(rule.fix)


@pytest.mark.parametrize(("name", "type_", "properties"), identified(GOOD))
def test_a_policy_lets_pass(name: str, type_: str, properties: Properties) -> None:
    assert rule_of(name).violations(type_, properties, OPTIONS.get(name)) == []


def test_every_policy_is_tried_both_ways() -> None:
    names = {rule.name for rule in RULES}
    assert {name for name, *_ in BAD} == {name for name, *_ in GOOD} == names
    assert len(names) == len(RULES)


def test_options_are_laid_over_the_defaults() -> None:
    rule = rule_of("no-ssh-from-anywhere")
    assert rule.violations(SECURITY_GROUP_RULE, ingress("198.51.0.0/16")) == []
    assert rule.violations(SECURITY_GROUP_RULE, ingress("198.51.0.0/16"), {"ipv4PrefixLength": 24.0}) != []
    cap, machine = rule_of("host-cap"), owned(name="payments-dev-5")
    assert cap.violations(INSTANCE, machine, {"maximum": 5.0}) == []
    assert cap.violations(INSTANCE, machine, {"teams": {"payments": 5.0}}) == []
    assert cap.violations(INSTANCE, machine, {"maximum": 9.0, "teams": {"payments": 4.0}}) != []
    machines = rule_of("machine-cap")
    assert machines.violations(FLEET, fleet(2, 4), {"maximum": 5.0}) != []
    assert machines.violations(FLEET, fleet(2, 4), {"maximum": 5.0, "teams": {"payments": 6.0}}) == []
    shared = rule_of("no-privileged-builds-on-shared-runner")
    group = registration(scope="group_type", builds="dind")
    assert shared.violations(REGISTRATION, group) == []
    assert shared.violations(REGISTRATION, group, {"scopes": ["group_type"]}) != []


def test_anything_will_do_where_nothing_is_named() -> None:
    for rule, seen in (("flavor-allowed", "flavor"), ("image-allowed", "image"), ("plugin-allowed", "plugin")):
        assert rule_of(rule).violations(WORKER_GROUP, {seen: "any"}) == []


def test_a_violation_tells_no_secret() -> None:
    secret = f"glpat-{'x' * 20}"
    (violation,) = rule_of("no-secret-in-user-data").violations(INSTANCE, {"userData": f"{MACHINE}# {secret}\n"})
    assert "glpat" not in violation
    assert "xxx" not in violation


def test_a_policy_looks_at_its_own_resources_only() -> None:
    assert rule_of("machine-tagged").violations(VIRTUAL_MACHINE, {}) == []


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: str(file.stem))
def test_a_configuration_names_policies_and_their_options(file: Path) -> None:
    assert (ROOT / "stacks" / "environments" / f"{file.stem}.yaml").exists()
    level = {"enum": ["advisory", "mandatory", "disabled"]}
    schema = {
        "additionalProperties": False,
        "properties": {
            rule.name: {
                "anyOf": [
                    level,
                    {
                        "type": "object",
                        "properties": {"enforcementLevel": level, **rule.options},
                        "additionalProperties": False,
                    },
                ]
            }
            for rule in RULES
        }
        | {"all": level},
    }
    jsonschema.validate(json.loads(file.read_text()), schema)


def test_a_stack_is_held_to_the_configuration_of_its_environment() -> None:
    assert policy_pack("payments-prod") == ["--policy-pack=policy", f"--policy-pack-config={FOLDER / 'prod.json'}"]
    assert policy_pack("acme/gitlab-runners/payments-dev")[1:] == [f"--policy-pack-config={FOLDER / 'dev.json'}"]
    # No layers, no environment.
    assert policy_pack("sandbox") == ["--policy-pack=policy"]


def test_the_reference_is_that_of_the_pack() -> None:
    assert (ROOT / "docs" / "reference" / "policies.md").read_text() == reference()
