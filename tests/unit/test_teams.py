"""What `make config` shows and `make new-stack` makes."""

import shutil
from pathlib import Path

import pytest
import yaml

from scripts.config import page
from scripts.console import Failure
from scripts.new_stack import NewStack, create
from scripts.stack import _sandbox_config
from settings import effective, load
from settings.layers import FOLDER
from settings.ownership import reserved
from settings.yaml_file import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped stacks, to be changed."""
    return shutil.copytree(FOLDER, tmp_path / "stacks")


def shown(folder: Path, stack: str) -> str:
    return page(effective(stack, folder=folder)).replace(f"{folder}/", "")


def test_each_value_is_shown_with_its_layer(folder: Path) -> None:
    lines = [" ".join(line.split()) for line in shown(folder, "storefront-prod").splitlines()]
    assert lines[0] == "# Stack storefront-prod: team storefront in prod"
    assert "image: debian-13 # defaults.yaml:8" in lines
    assert "openstack:cloud: sandbox # environments/prod.yaml:5" in lines
    assert "project: 101 # teams/storefront.yaml:10" in lines
    assert "protected: true # Pulumi.storefront-prod.yaml:10" in lines


def test_what_is_shown_is_the_configuration(folder: Path) -> None:
    assert yaml.safe_load(shown(folder, "payments-prod")) == effective("payments-prod", folder=folder).values.plain


def test_no_secret_is_shown(folder: Path) -> None:
    file = folder / "Pulumi.payments-dev.yaml"
    secrets = """\
config:
  gitlab:token: {secure: v1:encrypted}
  openstack:password:
    secure: v1:encrypted
  gitlab-runners:runners:
    app:
      environment:
        PASSWORD: {secure: v1:encrypted}
        GREETING: hello
    old:
      token: glrt-plain
      advanced:
        cache: {s3: {SecretKey: plain-key, BucketName: cache}}
"""
    file.write_text(secrets)
    text = shown(folder, "payments-dev")
    for secret in ("v1:encrypted", "glrt-plain", "plain-key"):
        assert secret not in text
    assert text.count('"[secret]"') == 5
    assert "GREETING: hello" in text
    assert "BucketName: cache" in text


def test_a_stack_of_its_own_file_alone_is_shown_too(folder: Path) -> None:
    assert shown(folder, "sandbox").startswith("# Stack sandbox: no layers\n")


def test_a_new_stack_is_valid_and_explains_itself(folder: Path) -> None:
    new = NewStack("payments", "stage", None, folder)
    shutil.copy(folder / "environments" / "dev.yaml", folder / "environments" / "stage.yaml")
    files = new.files()
    assert [str(file) for file in files] == ["Pulumi.payments-stage.yaml"]
    for file, text in files.items():
        (folder / file).write_text(text)
    layers = effective("payments-stage", folder=folder)
    assert load("payments-stage", layers.config, layers).runners["app"].project == 100


def test_a_team_of_a_group_alone_gets_a_runner_of_the_group(folder: Path) -> None:
    (folder / "teams" / "web-shop.yaml").write_text("gitlab: {groups: [12, 11]}\n")
    files = NewStack("web-shop", "dev", None, folder).files()
    runners = yaml.safe_load(files[Path("Pulumi.web-shop-dev.yaml")])["config"]["gitlab-runners:runners"]
    assert runners == {"app": {"group": 11, "tags": ["docker"]}}


def test_a_new_team_gets_a_file_too(folder: Path) -> None:
    files = NewStack("web-shop", "dev", 101, folder).files()
    assert [str(file) for file in files] == ["teams/web-shop.yaml", "Pulumi.web-shop-dev.yaml"]
    assert yaml.safe_load(files[Path("teams/web-shop.yaml")])["gitlab"] == {"groups": [], "projects": [101]}


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    create(NewStack("web-shop", "dev", 101, folder), "awskms://alias/ours", dry_run=True)
    assert sorted(folder.rglob("*")) == before
    assert "Would run: pulumi stack init web-shop-dev --secrets-provider=awskms://alias/ours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("new", "line"),
    [
        (("payments", "dev", None), "the stack payments-dev has its file already"),
        (("payments", "stage", None), "there is no environment stage; environments: dev, prod"),
        (("Payments", "dev", None), "team Payments: use lower-case letters, digits and hyphens"),
        (("", "dev", None), "team : use lower-case letters, digits and hyphens"),
        (("web-shop", "dev", None), "name the project for the first runner by its id in GitLab: PROJECT=…"),
        (("w" * 60, "dev", 7), "at most 63 are possible"),
    ],
)
def test_a_new_stack_that_cannot_be(folder: Path, new: tuple[str, str, int | None], line: str) -> None:
    with pytest.raises(Failure, match=line):
        NewStack(*new, folder).files()


def test_a_new_stack_stays_with_its_teams_projects(folder: Path) -> None:
    (folder / "Pulumi.payments-dev.yaml").unlink()
    with pytest.raises(Failure, match="project: 101: is not a project of this team, which has 100"):
        NewStack("payments", "dev", 101, folder).files()


@pytest.mark.parametrize("stack", ["payments-dev", "payments-prod"])
def test_the_shipped_environments_allow_what_make_puts_in_and_no_more(tmp_path: Path, stack: str) -> None:
    machines = {"SANDBOX_RUNNER_IMAGE": "runner:1", "SANDBOX_JOB_IMAGE": "job:1", "SANDBOX_GITLAB_URL": "http://gitlab"}
    completed = read(_sandbox_config(tmp_path, stack, machines)).content["config"].content
    put_in = {name for key, value in completed.items() for name, _ in reserved(key, value)}
    environment = FOLDER / "environments" / f"{stack.partition('-')[2]}.yaml"
    assert put_in == set(yaml.safe_load(environment.read_text())["allow"])
