"""`python -m sandbox job`: gives the sandbox's GitLab one job and shows its trace and result."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

POLL_S = 0.5
# A runner polls every few seconds; its first start includes reading its configuration and verifying its token.
PICKUP_TIMEOUT_S = 90
JOB_TIMEOUT_S = 300
REQUEST_TIMEOUT_S = 10

# https://docs.gitlab.com/ci/jobs/job_logs/: a line begins with its time, the stream's number, and O or E; a + instead
# of the blank after it goes on with the line before.
_TIME_AND_STREAM = r"\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]+Z [0-9a-f]{2}[OE]"

SCRIPT = (
    'echo "Job $CI_JOB_ID of $CI_PROJECT_PATH on the runner $CI_RUNNER_DESCRIPTION"',
    'echo "MTU of its network: $(cat /sys/class/net/eth0/mtu)"',
)


def run_job(gitlab: str, project: int, tags: Sequence[str], script: Sequence[str]) -> bool:
    """Whether a job succeeded; prints its trace as it grows.

    `gitlab` is the origin of the sandbox's GitLab (http://host:port). Raises TimeoutError when no runner takes the job
    in time or it does not end, requests.RequestException when GitLab does not answer.
    """
    session = requests.Session()
    session.trust_env = False  # No proxy leads to the sandbox.
    order: dict[str, Any] = {"project": project, "tags": list(tags), "script": list(script)}
    answer = session.post(f"{gitlab}/sandbox/jobs", json=order, timeout=REQUEST_TIMEOUT_S)
    answer.raise_for_status()
    number = answer.json()["id"]
    begun, shown = time.monotonic(), 0
    while True:
        answer = session.get(f"{gitlab}/sandbox/jobs/{number}", timeout=REQUEST_TIMEOUT_S)
        answer.raise_for_status()
        job = answer.json()
        ended = job["status"] in ("success", "failed")
        # A line is shown when the next one has begun: that may go on with it.
        trace = readable(job["trace"] if ended else job["trace"].rpartition("\n")[0])
        print(trace[shown:], end="", flush=True)
        shown = len(trace)
        waited = time.monotonic() - begun
        if ended:
            reason = f" ({job['failure_reason']})" if job["failure_reason"] else ""
            print(
                f"Job {number}: {job['status']}{reason}, run by runner {job['runner']}, {waited:.1f} s after it was put"
            )
            return bool(job["status"] == "success")
        if job["status"] == "pending" and waited > PICKUP_TIMEOUT_S:
            raise TimeoutError(f"no runner took job {number} (project {project}, tags {', '.join(tags) or 'none'})")
        if waited > JOB_TIMEOUT_S:
            raise TimeoutError(f"job {number} is still {job['status']}")
        time.sleep(POLL_S)


def readable(trace: str) -> str:
    """A job's log as GitLab shows it: without the times, the streams and the sections that the runner notes in it."""
    joined = re.sub(rf"\n{_TIME_AND_STREAM}\+", "", trace)
    return re.sub(rf"^{_TIME_AND_STREAM} |section_(?:start|end):\d+:\w+\r\x1b\[0K", "", joined, flags=re.MULTILINE)


def main(arguments: Sequence[str]) -> int:
    """Runs a job in the sandbox whose environment file is loaded; 0 when it succeeded."""
    parser = argparse.ArgumentParser(prog="sandbox job", description="Runs one job and shows its trace and result.")
    parser.add_argument("--project", type=int, default=100, help="id of the project that it belongs to")
    parser.add_argument("--tag", action="append", default=[], help="tag that its runner must have")
    parser.add_argument("script", nargs="*", help="lines of the job's script")
    asked = parser.parse_args(arguments)
    api = urlsplit(os.environ["GITLAB_BASE_URL"])
    try:
        succeeded = run_job(f"{api.scheme}://{api.netloc}", asked.project, asked.tag, asked.script or SCRIPT)
    except (TimeoutError, requests.RequestException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
