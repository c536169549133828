"""What `make preview-comment` does: the preview comment of the example stacks, on a merge request in the sandbox."""

import sys
from collections.abc import Sequence

import requests

from scripts.console import Failure, failures_in_one_line
from scripts.stack import SANDBOX, Stack, in_sandbox, open_stack, sandbox_up
from scripts.toolchain import ROOT, VENV
from settings.layers import stacks

_PROJECT = "100"
_TIMEOUT_SECONDS = 30
_REPORT = ROOT / ".sandbox" / "preview.md"


def main(options: Sequence[str]) -> None:
    """Previews the stacks, prints the comment and posts it; the next time it is updated.

    The change is what is not committed yet. `options` are further ones of `python -m review`.
    """
    sandbox_up()
    stack = open_stack(SANDBOX)
    environment = stack.environment
    # What GitLab tells a job of a merge request's pipeline.
    ci = {
        "CI_API_V4_URL": environment["GITLAB_BASE_URL"],
        "CI_PROJECT_ID": _PROJECT,
        "CI_MERGE_REQUEST_IID": str(_merge_request(stack)),
        "REVIEW_TOKEN": environment["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"],
    }
    command = [str(VENV / "bin" / "python"), "-m", "review", f"--output={_REPORT}", "--base=HEAD", *options]
    command += [f"--stack={name}" for name in stacks() if name != SANDBOX and in_sandbox(name)]
    if Stack(SANDBOX, {**environment, **ci}).run(command):
        raise Failure("the preview comment was not made, see above")


def _merge_request(stack: Stack) -> int:
    """Number of the merge request, which is opened once."""
    url = stack.environment["GITLAB_BASE_URL"].rstrip("/")
    token = {"PRIVATE-TOKEN": stack.environment["SANDBOX_GITLAB_ADMINISTRATOR_TOKEN"]}
    found = requests.get(f"{url}/projects/{_PROJECT}/merge_requests/1", headers=token, timeout=_TIMEOUT_SECONDS)
    if found.status_code == requests.codes.not_found:
        control = f"{stack.environment['SANDBOX_CONTROL_URL']}/merge_requests"
        found = requests.post(control, json={"project": int(_PROJECT)}, timeout=_TIMEOUT_SECONDS)
    found.raise_for_status()
    return int(found.json()["iid"])


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
