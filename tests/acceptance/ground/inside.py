"""What runs inside the namespaces, as their first process: makes the seed, or starts the cloud and runs the command.

It is given a Plan as JSON; nothing else calls it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from scripts.console import Failure, Step, failures_in_one_line

from . import configuration, namespaces, seed
from .machine_image import MachineImage
from .services import START_TIMEOUT_S, Daemons

_COMPUTE_SERVICES = {"nova-conductor", "nova-scheduler", "nova-compute"}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    lower:    root file systems, topmost first.
    writable: where the daemons' root file system is mounted and what they write is kept.
    state:    the folder for logs and clouds.yaml.
    image:    the image of the cloud's machines, where the seed is to be made.
    command:  what to run beside the cloud, where there is nothing to be seeded.
    """

    lower: Sequence[str]
    writable: str
    state: str
    image: MachineImage | None = None
    command: Sequence[str] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        image = fields.pop("image")
        return cls(**fields, image=image and MachineImage(**image))


def main() -> int:
    """Does what the plan says; the exit status of its command."""
    plan = Plan.from_json(sys.argv[1])
    state = Path(plan.state)
    namespaces.bring_up_network(configuration.HOST)
    root = namespaces.mount_root([Path(lower) for lower in plan.lower], Path(plan.writable))
    daemons = Daemons(root, state / "log")
    if plan.image:
        _make_seed(daemons, root, state, plan.image)
        return 0
    clouds = state / "clouds.yaml"
    configuration.write_clouds(clouds)
    _start(daemons, clouds)
    return _run(plan.command, daemons, state, clouds)


def _make_seed(daemons: Daemons, root: Path, state: Path, image: MachineImage) -> None:
    configuration.write(root)
    step = Step("seed")
    seed.make_databases(daemons)
    step.done("databases made")
    step = Step("seed")
    daemons.start("keystone")
    daemons.await_answer("keystone")
    clouds = state / "clouds.yaml"
    configuration.write_clouds(clouds, project="admin")
    seed.make_identities(seed.connect(clouds, "ground-admin"))
    since = _now()
    daemons.start()
    daemons.await_answer()
    step.done("daemons answer")
    step = Step("seed")
    configuration.write_clouds(clouds)
    cloud = seed.connect(clouds, "ground-admin")
    seed.fill(cloud, image)
    _await_compute(cloud, since)
    seed.map_compute_host(daemons)
    step.done("images, flavors and networks made")
    step = Step("seed")
    daemons.stop()
    step.done("daemons ended")


def _start(daemons: Daemons, clouds: Path) -> None:
    step = Step("cloud")
    since = _now()
    daemons.start()
    daemons.await_answer()
    step.done("daemons answer")
    step = Step("cloud")
    cloud = seed.connect(clouds, "ground-admin")
    for network in configuration.NETWORKS:
        # The name is the one that Nova looks for before it makes a bridge.
        id = cloud.network.find_network(network.name, ignore_missing=False).id
        namespaces.add_bridge(f"brq{id[:11]}", network.mtu, f"{network.gateway}/{network.prefix_length}")
    # Floating IPs are reached by a route through here, and led on to their machines.
    namespaces.add_bridge(configuration.EXTERNAL_NETWORK, 1500, configuration.EXTERNAL_GATEWAY)
    _await_compute(cloud, since)
    step.done("ready")


def _await_compute(cloud: seed.Cloud, since: datetime) -> None:
    """Waits until Nova's daemons have reported themselves since then."""
    up: set[str] = set()
    for _ in namespaces.wait_until(START_TIMEOUT_S):
        # One that was up a minute ago still counts as such for Nova, and what it is then told is lost.
        services = [service for service in cloud.compute.services() if service.updated_at]
        up = {service.binary for service in services if datetime.fromisoformat(service.updated_at) > since}
        if up >= _COMPUTE_SERVICES:
            return
    raise Failure(f"of Nova's daemons only these have reported themselves: {', '.join(sorted(up))}")


def _now() -> datetime:
    """The time as Nova tells it: UTC, without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)


def _run(command: Sequence[str], daemons: Daemons, state: Path, clouds: Path) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OS_")} | {
        "OS_CLIENT_CONFIG_FILE": str(clouds),
        "OS_CLOUD": "ground",
        "GROUND_STATE": str(state),
        "GROUND_GATEWAYS": ",".join(f"{network.name}={network.gateway}" for network in configuration.NETWORKS),
    }
    try:
        with subprocess.Popen(command, env=environment) as process:
            # An interruption by the keyboard is the command's to heed.
            signal.signal(signal.SIGINT, lambda number, frame: None)
            status = process.wait()
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from error
    if status and (report := daemons.report_dead()):
        print(report, file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    namespaces.become_init()
    with failures_in_one_line():
        sys.exit(main())
