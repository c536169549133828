"""What makes a runner manager wait for its predecessor: its first config.toml, and shell scripts for its container.

Until the predecessor has free slots, config.toml names an executor that no GitLab Runner has: such a manager verifies
its token as ever, and asks for no job (GitLab Runner, commands/multi.go, processRunner). A file of the year 2100 counts
as read already, until SIGHUP: so what an update writes meanwhile does not come into force before its time.
"""

import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

CONFIGURATION_FOLDER: Final = "/etc/gitlab-runner"
"""Where a manager's container has its volume."""
CONFIG_FILE: Final = f"{CONFIGURATION_FOLDER}/config.toml"
READ_ALREADY: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""The time of a config.toml that is not read again before SIGHUP."""
_IN_2100 = f"touch -t {READ_ALREADY:%Y%m%d%H%M} {CONFIG_FILE}"
_RELOAD = "kill -HUP 1"
# Alpine's image has busybox' wget (which knows http_proxy and no no_proxy), Ubuntu's has bash. After SIGQUIT workers
# go: idle ones at once, others when their job is reported. So their number is never smaller than that of the jobs, and
# only falls.
BUSY_WORKERS: Final = f"""\
port=$(sed -n 's/^listen_address = ".*:\\([0-9]*\\)"$/\\1/p' {CONFIG_FILE})
{{ http_proxy= timeout 5 wget -q -O - "http://127.0.0.1:$port/metrics" 2>/dev/null || timeout 5 bash -c '
  exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /metrics HTTP/1.0\\r\\n\\r\\n" >&3 && cat <&3' "$port"
}} | sed -n 's/^gitlab_runner_worker_slots_number //p'"""
"""Prints how many jobs a manager that got SIGQUIT can still have; nothing where it serves no metrics."""
TOKEN_DIGEST: Final = f"sed -n '/^token = /p' {CONFIG_FILE} | sha256sum | cut -c -64"
"""Prints what managers of one registration have in common."""


def token_digest(config: str) -> str:
    """What TOKEN_DIGEST prints where this is config.toml."""
    return sha256("".join(re.findall(r"^token = .*\n", config, re.MULTILINE)).encode()).hexdigest()


def held_back(config: str) -> str:
    """The config.toml of a manager that has not started: it takes no job. Its time is to be READ_ALREADY."""
    for key, value in _lines(0).items():
        config = re.sub(f"^{key} = .*", f"{key} = {value}", config, flags=re.MULTILINE)
    return config


def limited(jobs: int) -> str:
    """For a manager's container: from now on it takes as many jobs at once, none at all for 0."""
    return f"{_edit(jobs)} && {_IN_2100} && {_RELOAD}"


def released(concurrent: int) -> str:
    """For a manager's container: it is on its own, with `concurrent` as its stack says."""
    return f"{_edit(concurrent)} && {_RELOAD}"


def _edit(jobs: int) -> str:
    return (
        f"sed -i '{'; '.join(f's/^{key} = .*/{key} = {value}/' for key, value in _lines(jobs).items())}' {CONFIG_FILE}"
    )


def _lines(jobs: int) -> dict[str, str]:
    """The keys that say how many jobs a manager takes at once, with their values."""
    executor = "docker" if jobs else "none until the old manager has free slots"
    return {"concurrent": str(max(jobs, 1)), "executor": f'"{executor}"'}
