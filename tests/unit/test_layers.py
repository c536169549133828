"""What a stack gets from its environment and its team, and what the files of either may say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from settings import OpenStackHost, Settings, SettingsError, load
from settings.layers import Owner, effective, is_hidden, layer_files, owner_of, stacks

ENVIRONMENT = """\
config:
  openstack:cloud: prod-cloud
  gitlab-runners:host:
    kind: openstack
    flavor: m1.small
    image: debian-13
    network: runners
    keyPair: {name: platform}
    sshFrom:
      - 192.0.2.0/24
      - 198.51.100.0/24
"""
TEAM = """\
gitlab:
  groups: [10]
  projects: [100, 102]
config:
  gitlab-runners:host:
    flavor: m1.medium
  gitlab-runners:manager:
    concurrent: 2
"""
STACK = """\
config:
  gitlab-runners:host:
    sshFrom:
      - 203.0.113.0/24
  gitlab-runners:runners:
    app:
      project: 100
      tags: [docker]
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the files of a folder of stacks, those of one whole stack unless they are given."""

    def written(**files: str | None) -> Path:
        usual = {"environments/prod": ENVIRONMENT, "teams/payments": TEAM, "Pulumi.payments-prod": STACK}
        named = {
            name.replace("__", "/").replace("_stack", "Pulumi.payments-prod"): text for name, text in files.items()
        }
        for name, text in (usual | named).items():
            if text is not None:
                file = tmp_path / f"{name}.yaml"
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
        return tmp_path

    return written


def loaded(folder: Path, stack: str = "payments-prod") -> Settings:
    layers = effective(stack, folder=folder)
    return load(stack, layers.config, layers)


def mistakes(folder: Path, stack: str = "payments-prod") -> list[str]:
    """The lines that a stack's configuration gets, with the folder left out."""
    with pytest.raises(SettingsError) as caught:
        loaded(folder, stack)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_maps_merge_and_lists_replace(write: Write) -> None:
    folder = write(defaults="config:\n  gitlab-runners:manager: {concurrent: 9, checkInterval: 5}\n")
    plain = effective("payments-prod", folder=folder).values.plain
    assert plain["gitlab-runners:host"]["image"] == "debian-13"
    assert plain["gitlab-runners:host"]["flavor"] == "m1.medium"
    assert plain["gitlab-runners:host"]["sshFrom"] == ["203.0.113.0/24"]
    assert plain["gitlab-runners:manager"] == {"concurrent": 2, "checkInterval": 5}
    assert plain["openstack:cloud"] == "prod-cloud"


def test_null_takes_back_what_a_layer_says(write: Write) -> None:
    environment = ENVIRONMENT + "    floatingIpPool: public\n"
    stack = STACK.replace(
        "    sshFrom", "    floatingIpPool: null\n    keyPair: {name: null, publicKey: ssh-rsa AAAA}\n    sshFrom"
    )
    host = loaded(write(environments__prod=environment, _stack=stack)).host
    assert isinstance(host, OpenStackHost)
    assert (host.floating_ip_pool, host.key_pair.name) == (None, None)


def test_every_value_knows_the_line_that_set_it(write: Write) -> None:
    folder = write()
    layers = effective("payments-prod", folder=folder)

    def origin(*location: str | int) -> tuple[str, int | None]:
        found = layers.origin(location)
        return str(found.file.relative_to(folder)), found.line

    assert origin("openstack:cloud") == ("environments/prod.yaml", 2)
    assert origin("gitlab-runners:host", "flavor") == ("teams/payments.yaml", 6)
    assert origin("gitlab-runners:host", "keyPair", "name") == ("environments/prod.yaml", 8)
    assert origin("gitlab-runners:host", "sshFrom", 0) == ("Pulumi.payments-prod.yaml", 4)
    assert origin("gitlab-runners:runners", "app", "nothing") == ("Pulumi.payments-prod.yaml", 6)


def test_pulumis_own_values_win_and_have_the_lines_of_the_file(write: Write) -> None:
    folder = write(_stack=STACK + "  gitlab:token: {secure: v1:abc}\n")
    own = {
        "gitlab-runners:host": '{"sshFrom": ["203.0.113.0/24"], "ssh": {"port": 2222}}',
        "gitlab-runners:protect": "true",
        "gitlab:token": "glpat-decrypted",
    }
    layers = effective("payments-prod", own, folder)
    assert layers.config["gitlab:token"] == "glpat-decrypted"
    assert layers.config["gitlab-runners:protect"] == "true"
    assert layers.values.plain["gitlab-runners:host"]["ssh"] == {"port": 2222}
    assert layers.origin(("gitlab-runners:host", "sshFrom")).line == 3
    assert "gitlab:token" not in layers.shared_config


def test_values_are_read_as_pulumi_reads_them(write: Write) -> None:
    team = """\
config:
  gitlab-runners:runners:
    app:
      rotation: 2026-01-31
      maximumTimeout: 7200
      environment: {ON: yes, PORTS: 80:81, EMPTY: ""}
"""
    runner = loaded(write(teams__payments=team)).runners["app"]
    assert (runner.rotation, runner.maximum_timeout) == ("2026-01-31", 7200)
    assert runner.environment == {"ON": "yes", "PORTS": "80:81", "EMPTY": ""}


def test_text_that_is_json_is_what_it_says(write: Write) -> None:
    """So `pulumi config set gitlab-runners:host '{…}'` writes it."""
    stack = STACK + "  gitlab-runners:manager: '{\"checkInterval\": 7}'\n"
    plain = effective("payments-prod", folder=write(_stack=stack)).values.plain
    assert plain["gitlab-runners:manager"] == {"concurrent": 2, "checkInterval": 7}


def test_what_is_merged_may_be_said_anew(write: Write) -> None:
    team = "config:\n  gitlab-runners:manager:\n    <<: {concurrent: 5, checkInterval: 7}\n    concurrent: 3\n"
    plain = effective("payments-prod", folder=write(teams__payments=team)).values.plain
    assert plain["gitlab-runners:manager"] == {"concurrent": 3, "checkInterval": 7}


def test_a_file_that_is_no_text_is_told(write: Write) -> None:
    folder = write()
    (folder / "teams" / "payments.yaml").write_bytes("config: {} # Büro\n".encode("latin-1"))
    (told,) = mistakes(folder)
    assert told.startswith("teams/payments.yaml: is not YAML in UTF-8: ")


def test_what_the_layers_share_of_the_providers_is_no_secret(write: Write) -> None:
    allowing = ENVIRONMENT + "allow: [openstack:region]\n"
    stack = STACK + "  openstack:region: two\n  openstack:password: {secure: v1:abc}\n"
    folder = write(environments__prod=allowing, _stack=stack)
    assert effective("payments-prod", folder=folder).shared_config == {
        "openstack:cloud": "prod-cloud",
        "openstack:region": "two",
    }


def test_the_files_of_a_stack_are_listed_in_their_order(write: Write) -> None:
    folder = write(defaults="", **{"Pulumi.alone": STACK})
    assert [str(file.relative_to(folder)) for file in layer_files("payments-prod", folder)] == [
        "defaults.yaml",
        "environments/prod.yaml",
        "teams/payments.yaml",
        "Pulumi.payments-prod.yaml",
    ]
    assert layer_files("alone", folder) == [folder / "Pulumi.alone.yaml"]
    assert stacks(folder) == ["alone", "payments-prod"]


@pytest.mark.parametrize("stack", ["payments", "prod", "other-prod", "payments-other", "alone"])
def test_a_stack_without_both_files_is_its_own_file_alone(write: Write, stack: str) -> None:
    folder = write(defaults=ENVIRONMENT, **{f"Pulumi.{stack}": STACK})
    own = {"gitlab-runners:host": '{"kind":"docker"}'}
    layers = effective(stack, own, folder)
    assert (layers.owner, layers.config) == (None, {"gitlab-runners:host": '{"kind": "docker"}'})


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("gitlab:baseURL", "unknown key; did you mean gitlab:baseUrl?"),
        ("openstack:regin", "unknown key; did you mean openstack:region?"),
        ("openstack:config:regin", "unknown key; did you mean openstack:region?"),
        ("gitlab-runner:host", "unknown namespace; did you mean gitlab-runners?"),
        ("opnstack:cloud", "unknown namespace; did you mean openstack?"),
    ],
)
def test_a_key_that_nobody_reads_is_told_without_layers_too(write: Write, key: str, told: str) -> None:
    folder = write(**{"Pulumi.alone": f"config:\n  {key}: x\n"})
    name = key.replace(":config", "")
    for config in (None, {name: "x"}):
        with pytest.raises(SettingsError) as caught:
            effective("alone", config, folder)
        assert str(caught.value).replace(f"{folder}/", "") == f"Pulumi.alone.yaml, line 2: {name}: {told}"


@pytest.mark.parametrize(
    "key", ["gitlab:earlyAuthCheck", "pulumi:tags", "docker:host", "github:token", "openstack:cert"]
)
def test_keys_of_others_are_left_alone_without_layers(write: Write, key: str) -> None:
    folder = write(**{"Pulumi.alone": f"config:\n  {key}: x\n"})
    assert effective("alone", folder=folder).config == {key: "x"}


def test_hyphens_may_be_anywhere(write: Write) -> None:
    folder = write(**{"teams/web-shop": "", "environments/eu-west": ENVIRONMENT})
    assert owner_of("web-shop-eu-west", folder) == Owner("web-shop", "eu-west")
    (folder / "teams" / "web.yaml").touch()
    (folder / "environments" / "shop-eu-west.yaml").touch()
    with pytest.raises(SettingsError, match="may be team web in shop-eu-west or team web-shop in eu-west; rename"):
        owner_of("web-shop-eu-west", folder)


def test_a_stack_that_lacks_a_layer_hears_of_it(write: Write) -> None:
    folder = write(**{"Pulumi.paymants-prod": STACK})
    assert mistakes(folder, "paymants-prod")[-1] == (
        "stack paymants-prod: has no layers: there is environments/prod.yaml, but no teams/paymants.yaml"
    )


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        (
            "environments__prod",
            ENVIRONMENT + "  gitlab-runners:runners: {}\n",
            "environments/prod.yaml, line 12: gitlab-runners:runners: must not be set in the environment's file, "
            "but in the team's file or the stack's own file",
        ),
        (
            "teams__payments",
            TEAM + "  openstack:cloud: ours\n",
            "teams/payments.yaml, line 9: openstack:cloud: must not be set in the team's file, but in the "
            "environment's file; the environment's file may allow it: `allow: [openstack:cloud]`",
        ),
        (
            "teams__payments",
            TEAM + "  gitlab:token: glpat-plain\n",
            "teams/payments.yaml, line 9: gitlab:token: must not be set in the team's file, but in the stack's own "
            "file",
        ),
        (
            "environments__prod",
            ENVIRONMENT + "  gitlab-runners:hots: {}\n",
            "environments/prod.yaml, line 12: gitlab-runners:hots: unknown key; did you mean gitlab-runners:host?",
        ),
        (
            "environments__prod",
            "gitlab: {}\n" + ENVIRONMENT,
            "environments/prod.yaml, line 1: gitlab: the environment's file may only have config and allow at its top",
        ),
        (
            "_stack",
            STACK + "gitlab:\n  projects: [7]\n",
            "Pulumi.payments-prod.yaml, line 9: gitlab: only the team's file may say what is the team's in GitLab",
        ),
        (
            "teams__payments",
            TEAM + "  gitlab-runners:runners:\n    old: {token: glrt-plain}\n",
            "teams/payments.yaml, line 10: gitlab-runners:runners.old.token: the team's file can hold no secret: each "
            "stack encrypts its own, with `pulumi config set --secret`",
        ),
        (
            "teams__payments",
            TEAM + "  gitlab-runners:runners:\n    a: {advanced: {cache: {s3: {SecretKey: plain}}}}\n",
            "teams/payments.yaml, line 10: gitlab-runners:runners.a.advanced.cache.s3.SecretKey: the team's file can "
            "hold no secret: each stack encrypts its own, with `pulumi config set --secret`",
        ),
        (
            "environments__prod",
            ENVIRONMENT + "    metadata:\n      note:\n        secure: v1:abc\n",
            "environments/prod.yaml, line 13: gitlab-runners:host.metadata.note: the environment's file can hold no "
            "secret: each stack encrypts its own, with `pulumi config set --secret`",
        ),
        (
            "teams__payments",
            "gitlab: {users: [1]}\n",
            "teams/payments.yaml, line 1: gitlab.users: unknown key; there are groups and projects",
        ),
        (
            "teams__payments",
            "gitlab:\n  groups: [payments]\n",
            "teams/payments.yaml, line 2: gitlab.groups: must be a list of ids, which are numbers",
        ),
        ("environments__prod", "config: [\n", "environments/prod.yaml, line 2: is not YAML: "),
        ("environments__prod", "- config\n", "environments/prod.yaml, line 1: must be a map with config"),
        (
            "teams__payments",
            "config: {}\nconfig:\n  gitlab:baseUrl: x\n",
            "teams/payments.yaml, line 2: config: is there twice",
        ),
        (
            "_stack",
            "config: &all\n  gitlab-runners:host: *all\n",
            "Pulumi.payments-prod.yaml, line 1: an alias stands inside of what it names",
        ),
        ("_stack", "config: {gitlab-runners:x: !!int x}\n", "Pulumi.payments-prod.yaml: is not YAML in UTF-8: "),
        ("environments__prod", "config: 7\n", "environments/prod.yaml, line 1: config: must be a map"),
        (
            "environments__prod",
            ENVIRONMENT + "    flavour: m1.small\n",
            "gitlab-runners:host.flavour: unknown key; did you mean flavor? (environments/prod.yaml, line 12)",
        ),
        (
            "teams__payments",
            TEAM.replace("concurrent: 2", "concurrent: 0"),
            "gitlab-runners:manager.concurrent: 0: should be greater than or equal to 1 (teams/payments.yaml, line 8)",
        ),
        (
            "_stack",
            STACK.replace("203.0.113.0/24", "7"),
            "gitlab-runners:host.sshFrom[0]: 7: should be a valid string (Pulumi.payments-prod.yaml, line 4)",
        ),
        (
            "_stack",
            STACK.replace("project: 100", "project: 101"),
            "gitlab-runners:runners.app.project: 101: is not a project of this team, which has 100, 102; "
            "teams/payments.yaml, line 1 says what the team payments has (Pulumi.payments-prod.yaml, line 7)",
        ),
        (
            "_stack",
            STACK.replace("project: 100", "group: 11"),
            "gitlab-runners:runners.app.group: 11: is not a group of this team, which has 10; "
            "teams/payments.yaml, line 1 says what the team payments has (Pulumi.payments-prod.yaml, line 7)",
        ),
        (
            "_stack",
            STACK.replace("project: 100", "instance: true"),
            "gitlab-runners:runners.app.instance: true: takes jobs of every team; "
            "teams/payments.yaml, line 1 says what the team payments has (Pulumi.payments-prod.yaml, line 7)",
        ),
    ],
)
def test_a_mistake_is_told_with_its_layer_and_line(write: Write, file: str, text: str, line: str) -> None:
    folder = write(**{file: text})
    (told,) = mistakes(folder)
    assert told.startswith(line)


@pytest.mark.parametrize("room", [0, 1])
def test_a_description_has_room_for_the_stacks_name(write: Write, room: int) -> None:
    # GitLab takes 1024 characters, and what is added is " (payments-prod)".
    text = "x" * (1024 - len(" (payments-prod)") + 1 - room)
    folder = write(_stack=f"{STACK}      description: {text}\n")
    if room:
        assert loaded(folder).runners["app"].description == text
        return
    assert mistakes(folder) == [
        "gitlab-runners:runners.app.description: has 1025 characters with the stack's name, which is added to it; "
        "GitLab takes 1024 (Pulumi.payments-prod.yaml, line 9)"
    ]


def test_the_owners_tags_are_such_as_openstack_takes(write: Write) -> None:
    long = "p" * 49
    folder = write(
        **{f"environments/{long}": ENVIRONMENT, "teams/a": TEAM, f"Pulumi.a-{long}": STACK.replace("app:", "a:")}
    )
    (line,) = mistakes(folder, f"a-{long}")
    assert line.endswith("has 61 characters; OpenStack takes 60: shorten the team's or the environment's name")
    tags = f"    tags: [{', '.join(f't{number}' for number in range(49))}]\n"
    (line,) = mistakes(write(_stack=STACK.replace("    sshFrom:\n", f"{tags}    sshFrom:\n")))
    assert line.startswith("gitlab-runners:host.tags: there are 51 tags with those of the owner, which are added")


def test_a_team_without_a_list_may_name_any_project(write: Write) -> None:
    folder = write(teams__payments="", _stack=STACK.replace("100", "4711"))
    assert loaded(folder).runners["app"].project == 4711


def test_a_list_of_projects_alone_allows_no_group(write: Write) -> None:
    folder = write(teams__payments="gitlab: {projects: [100]}\n", _stack=STACK.replace("project: 100", "group: 10"))
    assert "10: is not a group of this team, which has none" in mistakes(folder)[0]


@pytest.mark.parametrize(
    ("location", "value", "hidden"),
    [
        (("gitlab:token",), "glpat", True),
        (("gitlab:baseUrl",), "https://gitlab.example", False),
        (("openstack:password",), "x", True),
        (("openstack:cloud",), "x", False),
        (("gitlab-runners:gitlabUrl",), "x", False),
        (("gitlab-runners:runners", "a", "token"), "glrt", True),
        (("gitlab-runners:runners", "a", "registryLogins", "registry.example", "password"), "x", True),
        (("gitlab-runners:runners", "a", "registryLogins", "registry.example", "user"), "x", False),
        (("gitlab-runners:host", "registryCache", "login", "password"), "x", True),
        (("gitlab-runners:cache", "secretKey"), "x", True),
        (("gitlab-runners:cache", "accessKey"), "x", True),
        (("gitlab-runners:cache", "bucket"), "x", False),
        (("gitlab-runners:runners", "a", "environment", "A"), {"secure": "v1:abc"}, True),
        (("gitlab-runners:runners", "a", "environment", "A"), "b", False),
        (("gitlab-runners:runners", "a", "advanced", "cache", "s3", "SecretKey"), "x", True),
        (("gitlab-runners:runners", "a", "advanced", "cache", "s3", "BucketName"), "x", False),
        (("gitlab-runners:manager", "advanced", "sentry_dsn"), "x", True),
    ],
)
def test_secrets_are_hidden(location: tuple[str | int, ...], value: object, hidden: bool) -> None:
    assert is_hidden(location, value) is hidden
