"""``python -m tests.acceptance.ground -- COMMAND...``: runs a command beside a real OpenStack on this machine.

Two phases. The first needs a network and is done once per machine: it makes root file systems of Debian's packages, a
disk for the cloud's machines and a seed, which is all that the cloud's daemons have written until the cloud is
complete. The second runs the daemons and the command in namespaces of their own, with all of it as layers of a file
system. When the command ends, or this process in whatever way, everything is gone but the layers.

The command finds in its environment

* OS_CLIENT_CONFIG_FILE, OS_CLOUD: clouds.yaml and its cloud ``ground``, whose user is a member of the project;
  ``ground-admin`` is an administrator of it;
* GROUND_STATE: a folder with clouds.yaml and with the daemons' logs in ``log``;
* GROUND_GATEWAYS: ``network=address,...``: at these addresses the machines of a network reach what listens beside the
  command. The command reaches the machines at their own addresses, and at their floating IPs.

To look around, let the command be a shell.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox import images
from scripts.console import Failure, Step, failures_in_one_line

from . import configuration, inside, machine_image, namespaces, rootfs, seed, services
from .artefacts import artefact, digest

_ARCHITECTURE = "amd64"  # of the machines, in Go's words; the recipes above know no other
_SEED_SOURCES = (
    *(Path(str(module.__file__)) for module in (configuration, services, seed, inside, machine_image)),
    Path(__file__).with_name("files") / f"{configuration.DRIVER}.py",
)


def run(command: Sequence[str], archives: Sequence[Path], state: Path | None = None) -> int:
    """Runs the command beside the cloud; its exit status.

    archives: container images (``docker save``) that Docker in the cloud's machines has.
    state:    the folder that is to outlive the command; without one, there is a temporary one.
    """
    _check()
    with contextlib.ExitStack() as stack:
        lower = _layers(stack, archives)
        work = stack.enter_context(_work_directory(lower[-1].parent))
        plan = inside.Plan(
            lower=[str(layer) for layer in lower], writable=str(work), state=str(state or work), command=command
        )
        return namespaces.run(namespaces.module("inside", plan.to_json()))


@contextlib.contextmanager
def _work_directory(parent: Path) -> Iterator[Path]:
    """A folder for what the cloud writes, until the context ends; removes those of processes that were killed.

    parent: the cache, since overlayfs cannot write to an overlay, as /tmp is in a container.
    """
    prefix = "run-"
    for leftover in parent.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), _locked(leftover):
            shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as work, _locked(Path(work)):
        yield Path(work)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock on a folder. Raises BlockingIOError when another process has it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _layers(stack: contextlib.ExitStack, archives: Sequence[Path]) -> list[Path]:
    """The layers of the daemons' root file system, topmost first."""
    openstack = stack.enter_context(artefact("openstack", rootfs.openstack_version(), rootfs.make_openstack))
    machine = stack.enter_context(artefact("machine", machine_image.root_version(), machine_image.make_root))
    disk = stack.enter_context(
        artefact(
            "disk",
            machine_image.disk_version(archives),
            lambda directory: machine_image.make_disk(directory, openstack, machine, archives),
        )
    )

    def make_seed(directory: Path) -> None:
        files = (machine / "vmlinuz", machine / "initrd", disk / "disk.qcow2", disk / "plain.qcow2")
        plan = inside.Plan(
            [str(openstack)], str(directory), str(directory), image=machine_image.MachineImage(*map(str, files))
        )
        if namespaces.run(namespaces.module("inside", plan.to_json())):
            raise Failure("the cloud could not be seeded")
        (directory / "root").rmdir()
        shutil.rmtree(directory / "work")

    seeded = stack.enter_context(
        artefact("seed", digest(openstack.name, machine.name, disk.name, *_SEED_SOURCES), make_seed)
    )
    return [seeded / "upper", openstack]


def _check() -> None:
    if os.geteuid() != 0:
        raise Failure("only root can make namespaces with a network, and mount in them")
    if missing := [tool for tool in namespaces.HOST_TOOLS if not shutil.which(tool)]:
        raise Failure(f"not installed: {', '.join(missing)}")


def main() -> int:
    """The command line; the exit status of the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.ground", description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, help="folder for logs and clouds.yaml that is to stay")
    parser.add_argument("command", nargs="+", help="what to run beside the cloud")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # not without tidying up
    step = Step("images")
    try:
        archives = [image.archive(step.doing) for image in images.made_images(_ARCHITECTURE)]
    except images.ImageError as error:
        raise Failure(str(error)) from error
    state = arguments.state and arguments.state.resolve()
    if state:
        state.mkdir(parents=True, exist_ok=True)
    return run(arguments.command, archives, state)


if __name__ == "__main__":
    with failures_in_one_line():
        sys.exit(main())
