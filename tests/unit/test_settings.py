"""What a stack file may say, and the one line that each mistake gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from settings import DockerHost, OpenStackHost, Settings, SettingsError, load
from settings.reference import page
from settings.schema import stack_file_schema

HOST: dict[str, Any] = {
    "kind": "openstack",
    "flavor": "m1.small",
    "image": "debian-13",
    "network": "runners",
    "keyPair": {"name": "me"},
    "sshFrom": ["192.0.2.0/24"],
}
RUNNER: dict[str, Any] = {"project": 1, "tags": ["docker"]}


def loaded(stack: str = "dev", **config: Any) -> Settings:
    values = {"host": HOST, "runners": {"app": RUNNER}} | config
    return load(
        stack,
        {
            f"gitlab-runners:{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
            if value is not None
        },
    )


def mistake(stack: str = "dev", **config: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(stack, **config)
    return str(caught.value)


def test_a_short_stack_file_is_enough() -> None:
    settings = loaded()
    assert isinstance(settings.host, OpenStackHost)
    assert settings.host.mtu == "auto"
    assert settings.runners["app"].scope == "project_type"
    assert settings.runners["app"].builds == "none"


def test_an_existing_engine_is_a_host() -> None:
    settings = loaded(host={"kind": "docker", "url": "ssh://ops@docker.example:2222", "mtu": 1400})
    assert isinstance(settings.host, DockerHost)
    assert settings.host_count == 1


def test_configuration_of_providers_is_left_alone() -> None:
    config = {"gitlab-runners:host": json.dumps(HOST), "gitlab-runners:runners": json.dumps({"app": RUNNER})}
    assert load("dev", config | {"openstack:cloud": "prod", "gitlab:baseUrl": "https://gitlab.example/"})


def test_managers_get_the_time_of_the_longest_job() -> None:
    runners = {"quick": RUNNER | {"maximumTimeout": 600}, "slow": RUNNER | {"maximumTimeout": 7200}}
    assert loaded(runners=runners).stop_grace_seconds == 7200


def test_an_image_may_be_given_by_tag_or_digest() -> None:
    assert loaded(manager={"version": "v19.0.0"}).manager.reference == "gitlab/gitlab-runner:v19.0.0"
    digest = "sha256:" + "0" * 64
    assert loaded(manager={"image": "mirror.example/runner", "version": digest}).manager.reference == (
        f"mirror.example/runner@{digest}"
    )


def test_a_token_is_not_shown() -> None:
    settings = loaded(runners={"app": {"token": "glrt-very-secret"}})
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"host": HOST | {"flavour": "x"}}, "host.flavour: unknown key; did you mean flavor?"),
        ({"runer": {}}, "runer: unknown key; did you mean runners?"),
        ({"host": HOST | {"count": "three"}}, 'host.count: "three": should be a valid integer'),
        ({"host": HOST | {"count": 0}}, "host.count: 0: should be greater than or equal to 1"),
        ({"host": None}, "host: is missing"),
        ({"host": {"kind": "podman"}}, "host.kind: must be openstack or docker"),
        ({"host": {key: value for key, value in HOST.items() if key != "image"}}, "host.image: is missing"),
        ({"runners": {}}, "runners: is empty; name at least one"),
        ({"runners": {"app": {"tags": ["x"]}}}, "app: needs exactly one of project, group, instance and token"),
        (
            {"runners": {"app": RUNNER | {"group": 2}}},
            "runners.app: needs exactly one of project, group, instance and token",
        ),
        (
            {"runners": {"app": RUNNER | {"maximumTimeout": 599}}},
            "runners.app.maximumTimeout: 599: should be greater than or equal to 600",
        ),
        ({"runners": {"app": RUNNER | {"tags": ["a,b"]}}}, 'runners.app.tags[0]: "a,b": is not a runner tag'),
        ({"runners": {"app": {"project": 1}}}, "runners.app: has no tags and takes no untagged jobs"),
        ({"runners": {"App": RUNNER}}, 'runners.App: "App": use lower-case letters, digits and hyphens'),
        (
            {"runners": {"app": RUNNER | {"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]}}},
            "runners.app: volumes must not give docker.sock to jobs",
        ),
        (
            {"runners": {"app": {"token": "glrt-x", "tags": ["x"]}}},
            "runners.app: tags is kept by the registration; with a token of your own set it in GitLab",
        ),
        (
            {"runners": {"app": RUNNER | {"builds": "kaniko"}}},
            "runners.app.builds: \"kaniko\": should be 'none' or 'dind'",
        ),
        ({"host": HOST | {"sshFrom": []}}, "host.sshFrom: is empty; name at least one"),
        ({"host": HOST | {"sshFrom": ["192.0.2.7/24"]}}, 'host.sshFrom[0]: "192.0.2.7/24": is not a CIDR'),
        ({"host": HOST | {"sshFrom": ["0.0.0.0/0"]}}, 'host.sshFrom[0]: "0.0.0.0/0": lets the whole internet'),
        ({"host": HOST | {"sshFrom": ["::/0"]}}, 'host.sshFrom[0]: "::/0": lets the whole internet'),
        ({"host": HOST | {"mtu": 1279}}, 'host.mtu: 1279: must be "auto" or a number of bytes from 1280'),
        ({"host": HOST | {"mtu": "1450"}}, 'host.mtu: "1450": must be "auto" or a number of bytes'),
        ({"host": HOST | {"keyPair": {}}}, "host.keyPair: needs exactly one of name and publicKey"),
        (
            {"host": HOST | {"ssh": {"address": "floating"}}},
            "host: ssh.address is floating, which needs floatingIpPool",
        ),
        (
            {"host": HOST | {"ssh": {"options": {"StrictHostKeyChecking": "no"}}}},
            "host.ssh: options.StrictHostKeyChecking is set by the program",
        ),
        ({"host": {"kind": "docker", "url": "http://x"}}, 'host.url: "http://x": must be unix:///path, ssh://'),
        ({"manager": {"stopGrace": 60}}, "manager.stopGrace: 60: is shorter than the longest maximumTimeout (3600)"),
        ({"gitlabUrl": "gitlab.example"}, 'gitlabUrl: "gitlab.example": must be an http:// or https:// URL'),
    ],
)
def test_a_mistake_gets_one_clear_line(config: dict[str, Any], line: str) -> None:
    text = mistake(**config)
    assert text.startswith("gitlab-runners:")
    assert line in text
    assert len(text.splitlines()) == 1


def test_every_mistake_is_told_at_once() -> None:
    assert len(mistake(host=HOST | {"mtu": 1, "count": 0}, runners={}).splitlines()) == 3


def test_a_wrong_token_is_not_repeated() -> None:
    assert "glrt-very-secret" not in mistake(runners={"app": {"token": "glrt-very-secret", "project": 1, "limit": 0}})


def test_names_must_fit_docker_and_host_names() -> None:
    assert "at most 63 are possible" in mistake(runners={"a" * 55: RUNNER})
    assert "use lower-case letters" in mistake(stack="Team_A")


def test_a_stack_without_a_file_is_named() -> None:
    assert "stacks/Pulumi.typo.yaml" in mistake(stack="typo", host=None, runners=None)


def test_the_published_schema_is_the_models() -> None:
    published = json.loads(Path("docs/reference/stack.schema.json").read_text())
    assert published == stack_file_schema(), "run: python -m settings.schema > docs/reference/stack.schema.json"


def test_the_published_reference_is_the_models() -> None:
    published = Path("docs/reference/stack-file.md").read_text()
    assert published == page(), "run: python -m settings.reference > docs/reference/stack-file.md"


def in_editor(**config: Any) -> list[str]:
    """What an editor underlines in a stack file."""
    file = {"config": {f"gitlab-runners:{key}": value for key, value in config.items()}}
    return [error.json_path for error in Draft202012Validator(stack_file_schema()).iter_errors(file)]


def test_editors_accept_what_the_program_accepts() -> None:
    runners = {"app": RUNNER, "own": {"token": {"secure": "v1:abc"}}}
    assert in_editor(host=HOST | {"mtu": 1400}, runners=runners) == []


def test_editors_underline_what_the_program_refuses() -> None:
    assert in_editor(host=HOST, runners={"app": RUNNER | {"maximumTimeout": 3}})
    assert in_editor(host=HOST | {"flavour": "x"}, runners={"app": RUNNER})
    assert in_editor(host=HOST | {"mtu": 1000}, runners={"app": RUNNER})
    assert in_editor(host=HOST, runners={"app": RUNNER}, runer={})
    assert in_editor(host=HOST)


@pytest.mark.parametrize("path", sorted(Path("stacks").glob("Pulumi.*.yaml")), ids=str)
def test_every_stack_file_fits_the_schema(path: Path) -> None:
    Draft202012Validator(stack_file_schema()).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted(Path("stacks").glob("Pulumi.*.yaml")), ids=str)
def test_every_stack_file_names_the_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=../docs/reference/stack.schema.json\n")
