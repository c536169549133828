"""A team's file that names another GitLab or another Keystone, on the real engine: nothing is sent there."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts.stack import sandbox_stack
from tests.engine.harness import ROOT, Sandbox
from tests.unit.server import Server, serving

pytestmark = pytest.mark.docker
STACK = "payments-dev"
PROGRAM = ("clients", "components", "renderers", "settings", "stacks")
KEYS = {"gitlab:baseUrl": "GET /api/v4/", "openstack:authUrl": "GET /v3"}


class Checkout:
    """A checkout of the project whose files of stacks are the test's to change, with a state of its own."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        for name in PROGRAM:
            shutil.copytree(ROOT / name, folder / name)
        for name in ("Pulumi.yaml", "__main__.py"):
            shutil.copy(ROOT / name, folder)
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        self.folder, self.stacks = folder, folder / "stacks"
        like = sandbox_stack(sandbox.state, STACK)
        assert like.config_file is not None
        content = yaml.safe_load(like.config_file.read_text())
        # The sandbox's own lies outside of this checkout.
        content["config"]["gitlab-runners:host"]["ssh"]["identityFile"] = "id_ed25519"
        (self.stacks / f"Pulumi.{STACK}.yaml").write_text(yaml.safe_dump(content))
        state = folder / "state"
        state.mkdir()
        self.environment = {**like.environment, "PULUMI_BACKEND_URL": state.as_uri()}
        assert self.run("stack", "init").returncode == 0

    def configure(self, file: str, key: str, value: object) -> None:
        """Sets a key at the top of a file, or below its `config`."""
        path = self.stacks / file
        content = yaml.safe_load(path.read_text())
        (content["config"] if ":" in key else content)[key] = value
        path.write_text(yaml.safe_dump(content))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of Pulumi on the stack."""
        words = ["pulumi", *command, f"--stack={STACK}", "--non-interactive"]
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(sandbox: Sandbox, tmp_path: Path) -> Checkout:
    return Checkout(sandbox, tmp_path / "checkout")


@pytest.fixture
def stranger() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.parametrize("file", ["teams/payments.yaml", f"Pulumi.{STACK}.yaml"])
@pytest.mark.parametrize("key", KEYS)
def test_a_preview_sends_nothing_to_whom_a_team_names(
    checkout: Checkout, stranger: Server, key: str, file: str
) -> None:
    checkout.configure(file, key, f"{stranger.url}/v3" if key == "openstack:authUrl" else stranger.url)
    preview = checkout.run("preview")
    assert preview.returncode != 0
    assert f"{key}: must not be set in" in preview.stdout + preview.stderr
    assert stranger.asked == []


@pytest.mark.parametrize("key", KEYS)
def test_unless_the_environment_allows_it(checkout: Checkout, stranger: Server, key: str) -> None:
    checkout.configure(
        f"Pulumi.{STACK}.yaml", key, f"{stranger.url}/v3" if key == "openstack:authUrl" else stranger.url
    )
    allowed = yaml.safe_load((checkout.stacks / "environments/dev.yaml").read_text())["allow"]
    checkout.configure("environments/dev.yaml", "allow", [*allowed, key])
    preview = checkout.run("preview")
    assert preview.returncode != 0
    assert [asked for asked in stranger.asked if asked.startswith(KEYS[key])], preview.stdout + preview.stderr


def test_a_token_that_the_stack_encrypts_is_its_own_to_set(checkout: Checkout) -> None:
    token = checkout.environment.pop("GITLAB_TOKEN")
    assert checkout.run("config", "set", "--plaintext", "gitlab:token", token).returncode == 0
    plain = checkout.run("preview")
    assert plain.returncode != 0
    assert "gitlab:token: is in plain text; set it with `pulumi config set --secret" in plain.stdout + plain.stderr
    assert checkout.run("config", "set", "--secret", "gitlab:token", token).returncode == 0
    preview = checkout.run("preview")
    assert preview.returncode == 0, preview.stdout + preview.stderr
