"""What lets the jobs of a machine's runner managers end: a shell script for the machine."""

import shlex
from typing import Final

from renderers.metrics import RUNNER_LABEL

STACK_LABEL: Final = "gitlab-runners.stack"
"""Label of all that is made on a host: the stack's name."""
SERVER_LABEL: Final = "gitlab-runners.server"
"""Label of all that is made on a virtual machine: the machine's id."""
TIME_IS_OVER: Final = 124
"""Exit status of the script when jobs still run after the time (that of timeout(1))."""
# Longer than `ssh` itself needs to give up a connection (ServerAliveInterval and ServerAliveCountMax).
_SILENCE_SECONDS = 120


def tell(signal: str) -> str:
    """For a manager's container: sends its process a signal.

    `docker kill` would do so too, but dockerd takes a container that got its stop signal from it for stopped, and never
    starts it again by itself, whatever its restart policy is by then (moby, daemon/kill.go).
    """
    return f"kill -{signal} 1"


def drain(server: str, signal: str, seconds: int, *, even_if_jobs_run: bool) -> str:
    """The script: sends the managers of a server a signal and returns when they have ended.

    It undoes what it did, unless it ends with 0: when its time is over (in seconds, but not where `even_if_jobs_run`),
    when it fails, and when who asked is gone, which is so once its input ends, or nothing comes for two minutes.
    Managers that have ended are then started; the others come back when their jobs have ended.
    """
    ended = f"0|{TIME_IS_OVER}" if even_if_jobs_run else "0"
    script = f"""\
exec 3<&0 9>>"$HOME/.gitlab-runners-drain-{server}" || exit
(while [ -n "$(timeout {_SILENCE_SECONDS} head -c 1 <&3)" ]; do :; done; kill $$) >/dev/null 2>&1 9>&- &
watch=$!
trap 'kill $watch 2>/dev/null' EXIT
# Another one may be undoing what it did.
flock 9 && kill -0 $watch || exit
managers=$(docker ps --quiet --no-trunc --filter label={SERVER_LABEL}={server} --filter label={RUNNER_LABEL}) || exit
[ -n "$managers" ] || exit 0
undo() {{
  docker update --restart always $managers >/dev/null
  docker start $managers >/dev/null
}}
trap 'kill $wait 2>/dev/null; undo; exit 1' HUP INT TERM
# Without a restart policy, or dockerd would start them again.
docker update --restart no $managers >/dev/null
for manager in $managers; do
  docker exec $manager sh -c '{tell(signal)}' || docker kill --signal {signal} $manager >/dev/null
done
timeout {seconds} docker wait $managers >/dev/null 9>&- &
wait=$!
wait $wait
status=$?
trap - HUP INT TERM
case $status in {ended}) ;; *) undo ;; esac
exit $status"""
    # Whatever ends the session must not end what undoes it.
    return f"exec setsid --wait sh -c {shlex.quote(script)}"
