"""What keeps a machine's disk from filling up: a script, and the systemd timer that runs it."""

from dataclasses import dataclass
from textwrap import dedent

PRUNE_SCRIPT = "/usr/local/sbin/prune-docker"
# GitLab Runner puts it before the names of the labels on all that it makes for jobs (GitLab Runner docs, "Docker
# executor").
_LABEL = "com.gitlab.gitlab-runner"
# On a disk that is nearly full: hours that suffice, and minutes that a job has to come from its first image to its
# container. One that takes longer was most likely left behind by a manager that was killed.
_HOURS_WHEN_FULL = 1
_JOB_STARTS_WITHIN_MINUTES = 60


@dataclass(frozen=True)
class Prune:
    """When to remove what nobody uses."""

    older_than_hours: int
    """Hours without use, and age of a job's containers: no running job may be older."""
    free_percent: int
    """Percentage of Docker's disk below whose free space an hour without use is enough."""


def prune_script(prune: Prune) -> str:
    """The script. Docker knows no time of the last use: it keeps, in $STATE_DIRECTORY, the times of its own finds."""
    return dedent(f"""\
        #!/bin/sh
        # Removes what jobs left on this machine and nobody has used for a while. What a container uses, also one that
        # does not run, is left alone.
        set -eu
        export LC_ALL=C
        cd "$STATE_DIRECTORY"

        # Keeps one file for each name that it reads; the file's time is when the name first came.
        remember() {{
          mkdir -p "$1"
          sort -u > "$1.now"
          ls "$1" | comm -23 - "$1.now" | while read -r gone; do rm "$1/$gone"; done
          while read -r name; do [ -e "$1/$name" ] || : > "$1/$name"; done < "$1.now"
        }}

        survey() {{
          docker ps --all --quiet | xargs -r docker inspect --format '{{{{.Image}}}}' | sort -u > used || true
          docker image ls --quiet --no-trunc | sort -u | comm -23 - used | remember images
          {{
            docker volume ls --quiet --filter dangling=true --filter label={_LABEL}.managed=true
            # Volumes without a name, for instance of services.
            docker volume ls --quiet --filter dangling=true | grep -Ex '[0-9a-f]{{64}}' || true
          }} | remember volumes
          # A job's network is there before its images are pulled, its own container only after the sources.
          docker ps --all --filter label={_LABEL}.type=build --format '{{{{.Label "{
        _LABEL
    }.job.id"}}}}' | sort -u > started
          docker network ls --filter label={_LABEL}.job.id --format '{{{{.Label "{_LABEL}.job.id"}}}}' |
            sort -u | comm -23 - started | remember starting
        }}

        remove_unused_for() {{
          docker builder prune --force --all --filter "until=$1h"
          for volume in $(find volumes -type f -mmin "+$(($1 * 60))" -exec basename {{}} \\;); do
            docker volume rm "$volume" || true
          done
          if [ -n "$(find starting -type f -mmin -{_JOB_STARTS_WITHIN_MINUTES})" ]; then
            echo "a job is about to start: images wait for the next time"
            return
          fi
          find images -type f -mmin "+$(($1 * 60))" -exec basename {{}} \\; > old
          docker image ls --no-trunc --format '{{{{.ID}}}} {{{{.Repository}}}}:{{{{.Tag}}}}' | while read -r id name; do
            case $name in *'<none>'*) name=$id ;; esac
            if grep -Fqx "$id" old; then docker image rm "$name" || true; fi
          done
        }}

        nearly_full() {{
          df -P "$(docker info --format '{{{{.DockerRootDir}}}}')" |
            awk 'NR == 2 && 100 - $5 >= {prune.free_percent} {{ exit 1 }}'
        }}

        docker container prune --force --filter label={_LABEL}.managed=true --filter until={prune.older_than_hours}h
        survey
        remove_unused_for {prune.older_than_hours}
        if nearly_full; then
          remove_unused_for {_HOURS_WHEN_FULL}
          if nearly_full; then echo "less than {
        prune.free_percent
    } % of the disk is free, and all of it is in use" >&2; fi
        fi
    """)


PRUNE_SERVICE = dedent(f"""\
    [Unit]
    Description=Remove what jobs left behind
    After=docker.service

    [Service]
    Type=oneshot
    ExecStart={PRUNE_SCRIPT}
    StateDirectory=prune-docker
""")

# The oftener it looks, the better it knows what is used.
PRUNE_TIMER = dedent("""\
    [Unit]
    Description=Remove what jobs left behind, every quarter of an hour

    [Timer]
    OnBootSec=15min
    OnUnitInactiveSec=15min
    RandomizedDelaySec=1min

    [Install]
    WantedBy=timers.target
""")
