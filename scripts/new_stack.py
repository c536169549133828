"""`make new-stack`: a stack for a team in an environment, its file written, checked and opened in the state backend."""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.console import Failure, failures_in_one_line
from scripts.stack import backend_of, in_sandbox, sandbox_up
from settings import SettingsError, effective, load
from settings.layers import FOLDER, stack_file
from settings.names import name_mistake
from settings.yaml_file import shown

_STACK = """\
# yaml-language-server: $schema=../docs/reference/team-stack.schema.json
#
# The team {team} in {environment}. What it shares stands in environments/{environment}.yaml and teams/{team}.yaml;
# `make config STACK={stack}` shows what comes of it. A key written here wins.
config:
  # Access token that creates the runners, encrypted here; or GITLAB_TOKEN in the environment:
  #   pulumi config set --stack {stack} --secret gitlab:token
  gitlab-runners:runners:
    app:
      {scope}
      # Jobs with one of these tags; `runUntagged: true` takes those without tags too.
      tags: [docker]
"""
_TEAM = """\
# yaml-language-server: $schema=../../docs/reference/team.schema.json
#
# The team {team}: what is its own in GitLab, by id, and below `config` what all of its stacks share.
gitlab:
  groups: []
  projects: [{project}]
"""


@dataclass(frozen=True)
class NewStack:
    """What is asked for; `project` is the id of a project in GitLab, by default the team's first."""

    team: str
    environment: str
    project: int | None
    folder: Path = FOLDER

    @property
    def name(self) -> str:
        """The stack's name."""
        return f"{self.team}-{self.environment}"

    def files(self) -> dict[Path, str]:
        """The files to write, relative to the folder: the stack's, and the team's if the team is new.

        They are checked as the program will. Failure when something is wrong.
        """
        for what, name in (("team", self.team), ("environment", self.environment)):
            if (mistake := name_mistake(what, name)) is not None:
                raise Failure(mistake)
        known = sorted(file.stem for file in (self.folder / "environments").glob("*.yaml"))
        if self.environment not in known:
            raise Failure(f"there is no environment {self.environment}; environments: {', '.join(known) or 'none'}")
        own = stack_file(self.name, self.folder)
        if own.exists():
            raise Failure(f"the stack {self.name} has its file already: {shown(own)}")
        files: dict[Path, str] = {}
        team_file = Path("teams") / f"{self.team}.yaml"
        scope = self._scope(is_new=not (self.folder / team_file).is_file())
        if not (self.folder / team_file).is_file():
            files[team_file] = _TEAM.format(team=self.team, project=self.project)
        names = {"stack": self.name, "team": self.team, "environment": self.environment}
        files[Path(own.name)] = _STACK.format(**names, scope=scope)
        with TemporaryDirectory() as copy:
            tried = shutil.copytree(self.folder, Path(copy) / self.folder.name)
            _write(files, tried)
            try:
                layers = effective(self.name, folder=tried)
                load(self.name, layers.config, layers)
            except SettingsError as error:
                raise Failure(str(error).replace(f"{tried}/", f"{shown(self.folder)}/")) from None
        return files

    def _scope(self, *, is_new: bool) -> str:
        """Where the first runner belongs: to the project asked for, or to the first of what is the team's."""
        if self.project is not None:
            return f"project: {self.project}"
        try:
            scopes = None if is_new else effective(self.name, folder=self.folder).scopes
        except SettingsError as error:
            raise Failure(str(error)) from None
        if scopes is not None and scopes.projects:
            return f"project: {min(scopes.projects)}"
        if scopes is not None and scopes.groups:
            return f"group: {min(scopes.groups)}"
        raise Failure("name the project for the first runner by its id in GitLab: PROJECT=…")


def _write(files: Mapping[Path, str], folder: Path) -> None:
    for file, text in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)


def create(asked: NewStack, secrets_provider: str, *, dry_run: bool) -> None:
    """Writes the files and initialises the stack, or shows what it would do."""
    files = asked.files()
    command = ["pulumi", "stack", "init", asked.name, f"--secrets-provider={secrets_provider}"]
    if dry_run:
        for file, text in files.items():
            print(f"Would write {shown(asked.folder / file)}:\n\n{text}")
        print(f"Would run: {' '.join(command)}")
        return
    _write(files, asked.folder)
    for file in files:
        print(f"Wrote {shown(asked.folder / file)}")
    if in_sandbox(asked.name):
        sandbox_up()
    if backend_of(asked.name).run(command):
        raise Failure(
            f"the files are there, but the stack {asked.name} could not be initialised, see above; "
            f"`make up STACK={asked.name}` tries again"
        )
    print(f"The stack {asked.name} is there. Next: make preview STACK={asked.name}")


def main(arguments: Sequence[str]) -> None:
    """One new stack."""
    parser = argparse.ArgumentParser(prog="scripts.new_stack", description="Makes a stack for a team.")
    parser.add_argument("--team", required=True)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--project", type=int, help="id of the project in GitLab that the first runner belongs to")
    parser.add_argument(
        "--secrets-provider",
        default=os.environ.get("SECRETS_PROVIDER") or "passphrase",
        help="as for `pulumi stack init` (default: SECRETS_PROVIDER, or passphrase)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done")
    asked = parser.parse_args(arguments)
    new = NewStack(asked.team, asked.environment, asked.project)
    create(new, asked.secrets_provider, dry_run=asked.dry_run)


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
