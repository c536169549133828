"""What `make` does with a stack: `python -m scripts.stack up --stack NAME`, and so on.

The stack `sandbox`, and those of teams whose cloud is called so, are run in the embedded sandbox: with its clouds, its
state and its passphrase, and nothing of the user's is touched. Any other stack is run with the backend, credentials and
environment of the user.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from components.abort import ABORT_JOBS, aborts_jobs
from scripts.console import Failure, Step, failures_in_one_line
from scripts.toolchain import ROOT, VENV, Toolchain
from settings import SettingsError, effective
from settings.layers import Layers, stack_file, stacks
from settings.names import name_mistake

SANDBOX = "sandbox"
# Public on purpose, and no secret depends on it: the sandbox's tokens open nothing but the sandbox.
SANDBOX_PASSPHRASE = "sandbox"
# What would lead a client elsewhere than into the sandbox; where Pulumi keeps its plugins stays the user's.
FOREIGN_VARIABLES = re.compile(r"(?!PULUMI_HOME$)(OS|GITLAB|PULUMI|CI|SANDBOX)_")
# An organization and a project of Pulumi Cloud, each of which may be left out.
_OWNER = r"([A-Za-z0-9_][A-Za-z0-9_.-]*/){0,2}"
LOOPBACK = "localhost,127.0.0.0/8"


@dataclass(frozen=True)
class Stack:
    """A stack: its name, the environment of its commands, and the file that says what it is, if not the usual one."""

    name: str
    environment: Mapping[str, str]
    config_file: Path | None = None

    def pulumi(self, command: str, *arguments: str) -> None:
        """Runs a command of Pulumi on the stack's configuration; Failure when it fails."""
        file = [f"--config-file={self.config_file}"] if self.config_file else []
        if self.run(["pulumi", command, f"--stack={self.name}", *file, *arguments]):
            raise Failure(f"`pulumi {command}` of the stack {self.name} failed, see above")

    def run(self, command: Sequence[str]) -> int:
        """Runs a command in the stack's environment and returns its exit status."""
        return _wait(subprocess.Popen(command, cwd=ROOT, env=self.environment))


def open_stack(name: str) -> Stack:
    """A stack by its name, made in its backend when it is new there. Failure when it has no stack file."""
    require_file(name)
    stack = backend_of(name)
    if stack.run(["pulumi", "stack", "select", "--create", name]):
        raise Failure(f"the stack {name} cannot be opened in its state backend, see above")
    return stack


def backend_of(name: str) -> Stack:
    """A stack by its name, as it is run here: in the sandbox, which must be running, or with what is the user's."""
    if in_sandbox(name):
        return sandbox_stack(ROOT / ".sandbox", name)
    return Stack(name, {**os.environ, **Toolchain.load().environment()})


def require_name(name: str) -> None:
    """Failure when no stack may be called so; its name may begin with its organization and project."""
    own = name.rpartition("/")[2]
    mistake = name_mistake("stack", own)
    if mistake is None and not re.fullmatch(_OWNER, name.removesuffix(own)):
        mistake = f"stack {json.dumps(name)}: what stands before its name must be an organization and a project"
    if mistake is not None:
        raise Failure(mistake)


def require_file(name: str) -> None:
    """Failure when no stack may be called so, or when it has no file."""
    require_name(name)
    file = stack_file(name.rpartition("/")[2])
    if not file.exists():
        known = ", ".join(stacks()) or "none"
        raise Failure(f"there is no stack {name}: {file.relative_to(ROOT)} does not exist; stacks: {known}")


def layers_of(name: str) -> Layers:
    """A stack's layers. Failure with what is wrong with them."""
    try:
        return effective(name.rpartition("/")[2])
    except SettingsError as error:
        raise Failure(str(error)) from None


def in_sandbox(name: str) -> bool:
    """Whether a stack is run in the embedded sandbox."""
    if name == SANDBOX:
        return True
    layers = layers_of(name)
    return layers.owner is not None and layers.config.get("openstack:cloud") == SANDBOX


def sandbox_stack(state: Path, name: str = SANDBOX) -> Stack:
    """A stack in the sandbox that runs with this state folder."""
    environment = {name: value for name, value in os.environ.items() if not FOREIGN_VARIABLES.match(name)}
    environment |= Toolchain.load().environment() | _exports(state / "env")
    backend = state / "pulumi"
    backend.mkdir(parents=True, exist_ok=True)
    environment |= {"PULUMI_BACKEND_URL": backend.as_uri(), "PULUMI_CONFIG_PASSPHRASE": SANDBOX_PASSPHRASE}
    for variable in ("NO_PROXY", "no_proxy"):
        environment[variable] = ",".join(filter(None, (os.environ.get(variable), LOOPBACK)))
    return Stack(name, environment, _sandbox_config(state, name, environment))


def _sandbox_config(state: Path, name: str, environment: Mapping[str, str]) -> Path:
    """A copy of a stack's own file with what only this machine knows: images, GitLab's URL and the SSH key.

    Its images are in no registry, so a runner that says nothing else does not ask one for them.
    """
    name = name.rpartition("/")[2]
    all_layers: dict[str, Any] = layers_of(name).values.plain
    content: dict[str, Any] = yaml.safe_load(stack_file(name).read_text()) or {}
    config: dict[str, Any] = content.get("config") or {}
    content["config"] = config
    manager = config.setdefault("gitlab-runners:manager", {})
    manager["image"], _, manager["version"] = environment["SANDBOX_RUNNER_IMAGE"].rpartition(":")
    runners = config.setdefault("gitlab-runners:runners", {})
    for runner, said in all_layers.get("gitlab-runners:runners", {}).items():
        own = runners.setdefault(runner, {})
        own["image"] = environment["SANDBOX_JOB_IMAGE"]
        own.setdefault("pullPolicies", said.get("pullPolicies", ["if-not-present"]))
    config["gitlab-runners:gitlabUrl"] = environment["SANDBOX_GITLAB_URL"]
    if all_layers.get("gitlab-runners:host", {}).get("kind") == "openstack":
        identity = state / "id_ed25519"
        host = config.setdefault("gitlab-runners:host", {})
        host["keyPair"] = {"publicKey": public_key(identity)}
        host.setdefault("ssh", {})["identityFile"] = str(identity)
    file = state / f"Pulumi.{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def public_key(identity: Path) -> str:
    """The public half of the operator's key, which is made when there is none."""
    if not identity.exists():
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        private = Ed25519PrivateKey.generate().private_bytes(pem, form, serialization.NoEncryption())
        identity.touch(mode=0o600)
        identity.write_bytes(private)
    key = serialization.load_ssh_private_key(identity.read_bytes(), password=None)
    ssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*ssh).decode()


def _exports(file: Path) -> dict[str, str]:
    """The variables of a file of `export NAME='value'` lines."""
    words = shlex.split(file.read_text(), comments=True)
    pairs = (word.partition("=") for word in words if word != "export")
    return {name: value for name, _, value in pairs}


def up(name: str, yes: bool, policies: bool) -> None:
    """Brings the stack up; one in the sandbox then runs a first job."""
    stack = _run_pulumi("up", name, yes, policies)
    if in_sandbox(name):
        _first_job(stack)


def down(name: str, yes: bool) -> None:
    """Removes all that the stack declared; with the stack `sandbox`, the sandbox as well."""
    if in_sandbox(name) and not (ROOT / ".sandbox").exists():
        print("The sandbox is down.")
        return
    if aborts_jobs(name.rpartition("/")[2], os.environ):
        print(f"{ABORT_JOBS}={os.environ[ABORT_JOBS]}: jobs that run are aborted, not waited for.")
    try:
        _run_pulumi("destroy", name, yes)
    except Failure as failure:
        hint = "; `make sandbox-down` takes the whole sandbox away" if in_sandbox(name) else ""
        raise Failure(f"{failure}{hint}") from None
    if name == SANDBOX:
        sandbox_down()


def _run_pulumi(command: str, name: str, yes: bool, policies: bool = False) -> Stack:
    require_file(name)
    if in_sandbox(name):
        # Also for `destroy`: clouds must answer to be emptied, even if the machine was restarted since.
        sandbox_up()
    stack = open_stack(name)
    # A real cloud is changed after a look at the plan, as `pulumi` itself has it; the sandbox needs no such care.
    confirmed = (yes or in_sandbox(name)) and command != "preview"
    options = [*(["--yes"] if confirmed else []), *(policy_pack(name) if policies else [])]
    if command in ("refresh", "destroy"):
        unreachable = forget_lost(stack)
        if command == "refresh":
            options += [f"--exclude={urn}" for urn in unreachable]
    stack.pulumi(command, *options)
    return stack


def forget_lost(stack: Stack) -> list[str]:
    """Takes out of the stack's state what was on machines that Nova does not have any more.

    Returns the URNs of what is on machines that cannot be reached. Failure where it cannot be told.
    """
    with TemporaryDirectory() as folder:
        unreachable = Path(folder) / "unreachable"
        command = [str(VENV / "bin" / "python"), "-m", "scripts.lost", stack.name, f"--unreachable={unreachable}"]
        # In the stack's environment, which leads to its cloud and to its backend.
        if stack.run([*command, *([f"--config-file={stack.config_file}"] if stack.config_file else [])]):
            raise Failure(f"what is left of the machines of {stack.name} cannot be told, see above")
        return unreachable.read_text().splitlines()


def policy_pack(name: str) -> list[str]:
    """Options of Pulumi for the policy pack, configured for the stack's environment where there is such a file."""
    owner = layers_of(name).owner
    config = ROOT / "policy" / f"{owner.environment}.json" if owner is not None else None
    return ["--policy-pack=policy", *([f"--policy-pack-config={config}"] if config and config.exists() else [])]


def sandbox_up() -> None:
    """Starts the sandbox's clouds, or finds them running."""
    step = Step("Sandbox")
    if _sandbox("up"):
        raise Failure("the sandbox did not start, see above")
    step.done("running")


def sandbox_down() -> None:
    """Ends the sandbox, and forgets what its clouds held: state about nothing would be wrong."""
    step = Step("Sandbox")
    if _sandbox("down"):
        raise Failure("the sandbox could not be ended, see above")
    shutil.rmtree(ROOT / ".sandbox", ignore_errors=True)
    step.done("ended, nothing is left of it")


def _sandbox(command: str) -> int:
    return _wait(subprocess.Popen([str(VENV / "bin" / "python"), "-m", "sandbox", command], cwd=ROOT))


def _first_job(stack: Stack) -> None:
    """A job for the first runner that takes one of an unprotected branch of its project."""
    runners = layers_of(stack.name).values.plain["gitlab-runners:runners"].values()
    runner = next((each for each in runners if "project" in each and not each.get("protected")), None)
    if runner is None:
        print("No first job: no runner of this stack takes one of an unprotected branch of its project.")
        return
    asked = [f"--project={runner['project']}", *(f"--tag={tag}" for tag in runner.get("tags", []))]
    if stack.run([str(VENV / "bin" / "python"), "-m", "sandbox", "job", *asked]):
        raise Failure("the runner is up, but the job did not succeed, see above")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for a command that the keyboard interrupts as well: Pulumi then ends what it has begun and saves it."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def main(arguments: Sequence[str]) -> None:
    """One command on one stack."""
    parser = argparse.ArgumentParser(prog="scripts.stack", description="Runs a command on a stack.")
    commands = ("up", "preview", "refresh", "down", "sandbox-up", "sandbox-down", "run")
    parser.add_argument("command", choices=commands)
    parser.add_argument("--stack", default=SANDBOX)
    parser.add_argument("--yes", action="store_true", help="do not ask before a real cloud is changed")
    parser.add_argument("--policies", action="store_true", help="for up and preview: ask the policy pack")
    parser.add_argument("program", nargs="*", help="for run: a command, started in the stack's environment")
    asked = parser.parse_args(arguments)
    match asked.command:
        case "up":
            up(asked.stack, asked.yes, asked.policies)
        case "down":
            down(asked.stack, asked.yes)
        case "sandbox-up":
            sandbox_up()
        case "sandbox-down":
            sandbox_down()
        case "run":
            sys.exit(open_stack(asked.stack).run(asked.program))
        case command:
            _run_pulumi(command, asked.stack, asked.yes, asked.policies and command == "preview")


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
