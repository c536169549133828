"""What only an environment says in a stack with layers, and what it can allow."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from clients.gitlab import CONFIGURATION as OF_GITLAB
from clients.openstack import CONFIGURATION as OF_OPENSTACK
from components.openstack_provider import KEYS as OF_OPENSTACKS_PROVIDER
from settings import SettingsError
from settings.layers import effective
from settings.ownership import ALLOWABLE, CREDENTIALS, PROVIDER_KEYS, RESERVED, SHARED_PROVIDER_KEYS

STACK = "payments-prod"
FILES = {
    "defaults": "config: {}\n",
    "environments/prod": "config:\n  openstack:cloud: prod-cloud\n",
    "teams/payments": "config:\n  gitlab-runners:manager: {concurrent: 2}\n",
    f"Pulumi.{STACK}": "config:\n  gitlab-runners:protect: true\n",
}
OWN = f"Pulumi.{STACK}"
TEAM = "teams/payments"
WHO_SETS = {OWN: "the stack's own file", TEAM: "the team's file"}


def folder_of(project: Path, files: Mapping[str, str]) -> Path:
    """A folder of stacks with these files, and the usual ones besides."""
    folder = project / "stacks"
    for name, text in (FILES | dict(files)).items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def mistakes(project: Path, files: Mapping[str, str], config: Mapping[str, str] | None = None) -> list[str]:
    """The lines that the layers get."""
    folder = folder_of(project, files)
    try:
        effective(STACK, config, folder)
    except SettingsError as error:
        return str(error).replace(f"{folder}/", "").splitlines()
    return []


def nested(key: str) -> str:
    """YAML that sets a key, and ends with it."""
    first, *inner = key.split(".")
    lines = [f"  {first}:", *(f"{'  ' * (2 + depth)}{name}:" for depth, name in enumerate(inner))]
    return "\n".join(lines)


SETTABLE = [key for key in ALLOWABLE if ":" in key]


def but_in_the_environment(key: str) -> str:
    known = {*SHARED_PROVIDER_KEYS, *RESERVED}
    return ", but in the environment's file" if key in known else ""


@pytest.mark.parametrize("key", [key for key in SETTABLE if key not in CREDENTIALS])
@pytest.mark.parametrize("file", WHO_SETS)
def test_neither_a_team_nor_a_stack_says_where_credentials_go(tmp_path: Path, file: str, key: str) -> None:
    text = FILES[file] + f"{nested(key)} x\n"
    line = len(text.splitlines())
    assert mistakes(tmp_path, {file: text}) == [
        f"{file}.yaml, line {line}: {key}: must not be set in {WHO_SETS[file]}{but_in_the_environment(key)}; "
        f"the environment's file may allow it: `allow: [{key}]`"
    ]


@pytest.mark.parametrize("key", SETTABLE)
@pytest.mark.parametrize("file", WHO_SETS)
@pytest.mark.parametrize("allowing", ["defaults", "environments/prod"])
def test_the_environment_allows_single_keys(tmp_path: Path, file: str, key: str, allowing: str) -> None:
    files = {file: FILES[file] + f"{nested(key)} x\n", allowing: FILES[allowing] + f"allow: ['{key}']\n"}
    assert mistakes(tmp_path, files) == []


def test_what_one_key_is_allowed_no_other_is(tmp_path: Path) -> None:
    files = {
        OWN: "config:\n  gitlab-runners:host:\n    ssh: {identityFile: key, jumpHost: me@bastion}\n",
        "environments/prod": "allow: [gitlab-runners:host.ssh.identityFile]\n",
    }
    (line,) = mistakes(tmp_path, files)
    assert line.startswith(f"{OWN}.yaml, line 3: gitlab-runners:host.ssh.jumpHost: must not be set")


def test_a_user_and_a_port_for_ssh_are_theirs(tmp_path: Path) -> None:
    ssh = "  gitlab-runners:host: {ssh: {user: ubuntu, port: 2222}}\n"
    assert mistakes(tmp_path, {TEAM: FILES[TEAM] + ssh, OWN: FILES[OWN] + ssh}) == []


@pytest.mark.parametrize("key", CREDENTIALS)
def test_who_logs_in_is_the_stacks_own_and_encrypted(tmp_path: Path, key: str) -> None:
    assert mistakes(tmp_path / "encrypted", {OWN: f"config:\n  {key}: {{secure: v1:abc}}\n"}) == []
    assert mistakes(tmp_path / "plain", {OWN: f"config:\n  {key}: abc\n"}) == [
        f"{OWN}.yaml, line 2: {key}: is in plain text; set it with `pulumi config set --secret {key}`"
    ]
    (line,) = mistakes(tmp_path / "team", {TEAM: f"config:\n  {key}: abc\n"})
    assert line.startswith(f"{TEAM}.yaml, line 2: {key}: must not be set in the team's file, but in the stack's own")


@pytest.mark.parametrize("value", ["null", "text", "[]"])
@pytest.mark.parametrize("file", WHO_SETS)
@pytest.mark.parametrize("key", ["gitlab-runners:host", "gitlab-runners:host.ssh"])
def test_what_the_environment_says_is_not_taken_back_as_a_whole(
    tmp_path: Path, file: str, key: str, value: str
) -> None:
    text = FILES[file] + f"{nested(key)} {value}\n"
    where = f"{file}.yaml, line {len(text.splitlines())}: {key}"
    assert mistakes(tmp_path, {file: text}) == [f"{where}: must be a map; what the environment's file says in it stays"]


@pytest.mark.parametrize(
    ("said", "name", "hint"),
    [
        ("gitlab:baseURL", "gitlab:baseURL", "; did you mean gitlab:baseUrl?"),
        ("openstack:regin", "openstack:regin", "; did you mean openstack:region?"),
        ("gitlab-runner:host", "gitlab-runner:host", "; did you mean gitlab-runners:host?"),
        ("aws:region", "aws:region", ""),
        ("docker:host", "docker:host", ""),
    ],
)
def test_keys_that_nobody_knows_are_refused_with_a_near_name(tmp_path: Path, said: str, name: str, hint: str) -> None:
    (line,) = mistakes(tmp_path, {OWN: f"config:\n  {said}: x\n"})
    assert line.startswith(f"{OWN}.yaml, line 2: {name}: unknown key")
    if hint:
        assert line.endswith(hint)


def test_pulumis_older_way_to_write_a_key_is_the_same_key(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, {OWN: "config:\n  gitlab:config:baseUrl: https://stranger.example\n"})
    assert line.startswith(f"{OWN}.yaml, line 2: gitlab:baseUrl: must not be set in the stack's own file")


@pytest.mark.parametrize("file", WHO_SETS)
def test_nor_does_json_or_a_merge_hide_a_key(tmp_path: Path, file: str) -> None:
    text = """\
config:
  <<: {gitlab:baseUrl: x}
  gitlab-runners:host: '{"kind": "docker"}'
"""
    lines = [line.partition(": must not be set")[0] for line in mistakes(tmp_path, {file: text})]
    assert lines == [f"{file}.yaml, line 2: gitlab:baseUrl", f"{file}.yaml, line 3: gitlab-runners:host.kind"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    files = {
        "environments/prod": "allow: [gitlab:baseUrL]\n",
        TEAM: "config:\n  openstack:authUrl: x\n",
        OWN: "config:\n  gitlab:baseUrl: x\n  gitlab-runners:host: {kind: docker, url: 'ssh://x', certPath: /x}\n",
    }
    places = [line.partition(": ")[0] for line in mistakes(tmp_path, files)]
    own = f"{OWN}.yaml, line"
    expected = ["environments/prod.yaml, line 1", f"{TEAM}.yaml, line 2", f"{own} 2", *[f"{own} 3"] * 3]
    assert places == expected


@pytest.mark.parametrize(
    ("allow", "line"),
    [
        ("gitlab:baseUrl", "allow: must be a list of keys, like [gitlab-runners:gitlabUrl]"),
        (
            "[gitlab-runners:gitlabURL]",
            "allow[0]: gitlab-runners:gitlabURL: is no key that can be allowed; did you mean gitlab-runners:gitlabUrl?",
        ),
        ("[7]", "allow[0]: 7: is no key that can be allowed"),
        (
            "[gitlab:token]",
            "allow[0]: gitlab:token: needs no leave: each stack encrypts its own, with `pulumi config set --secret`",
        ),
    ],
)
def test_what_is_allowed_is_checked(tmp_path: Path, allow: str, line: str) -> None:
    files = {"environments/prod": f"allow: {allow}\n"}
    assert mistakes(tmp_path, files) == [f"environments/prod.yaml, line 1: {line}"]


def test_a_team_allows_itself_nothing(tmp_path: Path) -> None:
    for file, told in ((TEAM, "the team's file may only have config and gitlab at its top"), (OWN, "unknown key")):
        (line,) = mistakes(tmp_path / file, {file: "allow: [gitlab:baseUrl]\n"})
        assert line.startswith(f"{file}.yaml, line 1: allow: {told}")


@pytest.mark.parametrize("path", ["/etc/key", "../key", "~/.ssh/key", "%d/.ssh/key", "${HOME}/key", "link/key"])
@pytest.mark.parametrize("key", ["host.ssh.identityFile", "host.certPath"])
def test_an_allowed_path_stays_in_the_projects_folder(tmp_path: Path, key: str, path: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    allowing = f"allow: ['gitlab-runners:{key}']\n"
    yaml = f"config:\n{nested(f'gitlab-runners:{key}')} "
    (line,) = mistakes(tmp_path, {OWN: f"{yaml}'{path}'\n", "environments/prod": allowing})
    assert line.endswith(f"gitlab-runners:{key}: must be the path of a file in the project's folder")
    assert mistakes(tmp_path, {OWN: f"{yaml}keys/of-payments\n", "environments/prod": allowing}) == []


def test_what_comes_from_the_command_line_alone_is_checked_too(tmp_path: Path) -> None:
    config = {"gitlab:baseUrl": "https://stranger.example", "gitlab:token": "glpat"}
    (where, token) = mistakes(tmp_path, {}, config)
    assert where.startswith(f"{OWN}.yaml: gitlab:baseUrl: must not be set in the stack's own file")
    assert token.startswith(f"{OWN}.yaml: gitlab:token: is in plain text")
    assert mistakes(tmp_path, {}, {}) == []
    folder = tmp_path / "stacks"
    assert effective(STACK, {"gitlab:token": "glpat"}, folder, {"gitlab:token"}).config["gitlab:token"] == "glpat"


def test_an_environments_imports_are_its_own_to_allow(tmp_path: Path) -> None:
    files = {OWN: "environment: [secrets-of-prod]\n"}
    assert mistakes(tmp_path, files) == [
        f"{OWN}.yaml, line 1: environment: must not be set in the stack's own file; the environment's file may allow "
        "it: `allow: [environment]`"
    ]
    assert mistakes(tmp_path, files | {"defaults": "allow: [environment]\n"}) == []


def test_no_key_of_the_providers_is_forgotten() -> None:
    """The program hands these on, so somebody has to own them."""
    taken = {f"gitlab:{key}" for key in (*OF_GITLAB, "clientCert", "clientKey", "headers", "retries")}
    taken |= {f"openstack:{key}" for key in {*OF_OPENSTACK, *OF_OPENSTACKS_PROVIDER}}
    assert set(PROVIDER_KEYS) == taken
