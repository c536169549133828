"""What keeps a machine's packages up to date: unattended upgrades, and a restart at night that costs no job."""

from dataclasses import dataclass
from textwrap import dedent

from renderers.metrics import RUNNER_LABEL

UPDATE_SCRIPT = "/usr/local/sbin/update-engine-and-restart"
UPDATE_TIMER_UNIT = "update-engine-and-restart.timer"
UPDATES_PACKAGE = "unattended-upgrades"
REBOOT_REQUIRED = "/run/reboot-required"
# Debian's and Ubuntu's packages whose update restarts dockerd or what is below it. Containers live on, but a manager
# loses sight of the jobs in them.
_ENGINE = ("docker.io", "docker-cli", "containerd", "runc")
_MINUTES_OF_DAY = 24 * 60
# Multiples of it, modulo 1, lie well apart however many of them there are (the golden ratio's additive recurrence).
_SPREAD = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Updates:
    """When a machine may restart."""

    reboot_window: str
    """HH:MM-HH:MM, UTC; it may pass midnight."""
    machine: int
    """Number of the machine in its stack: machines begin at different times."""


def begins_at(updates: Updates) -> str:
    """Time of day (UTC) at which this machine looks whether it has to restart."""
    start, end = (int(time[:2]) * 60 + int(time[3:]) for time in updates.reboot_window.split("-"))
    length = (end - start) % _MINUTES_OF_DAY
    minute = (start + int(length * ((updates.machine - 1) * _SPREAD % 1))) % _MINUTES_OF_DAY
    return f"{minute // 60:02}:{minute % 60:02}"


# `docker stop` sends the managers SIGQUIT, waits for as long as their containers say (a day), and keeps the restart
# policy from starting them again: until dockerd starts, or the end of this script.
UPDATE_PROGRAM = dedent(f"""\
    #!/bin/sh
    # Updates the engine, and restarts the machine, where an update asks for that; before either, jobs end.
    set -eu
    export LC_ALL=C DEBIAN_FRONTEND=noninteractive

    managers() {{
      docker ps --quiet --filter label={RUNNER_LABEL}
    }}

    # Somebody else lets jobs end here: the machine is about to go.
    leaves() {{
      [ -n "$(managers | xargs -r docker inspect --format '{{{{.HostConfig.RestartPolicy.Name}}}}' | grep -vx always)" ]
    }}

    engine_update() {{
      packages=$(dpkg-query --show --showformat '${{Package}} ${{db:Status-Status}}\\n' \\
        {" ".join(_ENGINE)} 2>/dev/null | sed -n 's/ installed$//p')
      [ -n "$packages" ] && apt-get --simulate --only-upgrade install $packages | grep -q '^Inst '
    }}

    drain() {{
      # A manager that came meanwhile is drained too.
      while :; do
        running=$(managers)
        [ -n "$running" ] || break
        stopped="$stopped $running"
        echo "waiting for the jobs of" $running
        docker stop $running >/dev/null
      done
    }}

    stopped=
    [ -e {REBOOT_REQUIRED} ] || engine_update || exit 0
    if leaves; then exit 0; fi
    trap '[ -z "$stopped" ] || docker start $stopped >/dev/null' EXIT
    drain
    if engine_update; then
      # dockerd starts anew, and with it the managers.
      apt-get --yes --only-upgrade --no-remove -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold \\
        install $packages
    fi
    if [ -e {REBOOT_REQUIRED} ]; then
      drain
      systemctl reboot
      trap - EXIT
    fi
""")

_UPDATE_SERVICE = dedent(f"""\
    [Unit]
    Description=Update the engine and restart this machine, where an update asks for that
    After=docker.service

    [Service]
    Type=oneshot
    ExecStart={UPDATE_SCRIPT}
""")

_BLACKLIST = " ".join(f'"{package}$";' for package in _ENGINE)
_APT = dedent(f"""\
    APT::Periodic::Update-Package-Lists "1";
    APT::Periodic::Unattended-Upgrade "1";
    Unattended-Upgrade::Automatic-Reboot "false";
    // Updated while no job runs: {UPDATE_SCRIPT}
    Unattended-Upgrade::Package-Blacklist {{ {_BLACKLIST} }};
""")


def update_files(updates: Updates) -> dict[str, str]:
    """Files by their paths, besides the script."""
    timer = dedent(f"""\
        [Unit]
        Description=Update the engine and restart this machine, where an update asks for that

        [Timer]
        OnCalendar=*-*-* {begins_at(updates)}:00 UTC

        [Install]
        WantedBy=timers.target
    """)
    return {
        "/etc/apt/apt.conf.d/52gitlab-runners": _APT,
        "/etc/systemd/system/update-engine-and-restart.service": _UPDATE_SERVICE,
        f"/etc/systemd/system/{UPDATE_TIMER_UNIT}": timer,
    }
