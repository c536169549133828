"""Docker's own volume: what the machine is told, and its scripts on a real disk."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from renderers.cloud_init import CloudInit, user_data
from renderers.docker_volume import START_ON_VOLUME, DockerVolume, docker_volume_files

ID = "3f2b7c1e-9d40-4c58-8a11-0e6f5d2c7b90"
VOLUME = DockerVolume(ID)
NAMES = [
    "virtio-3f2b7c1e-9d40-4c58-8",
    f"virtio-{ID}",
    "scsi-0QEMU_QEMU_HARDDISK_3f2b7c1e-9d40-4c58-8",
    f"scsi-0QEMU_QEMU_HARDDISK_{ID}",
    f"wwn-0x{ID.replace('-', '')}",
]
MIB = 1 << 20
# capabilities(7)
CAP_SYS_RESOURCE = 24


def machine(volume: DockerVolume | None, *, install_docker: bool = True) -> dict[str, Any]:
    rendered = user_data(
        CloudInit(
            user="debian",
            mtu=1450,
            install_docker=install_docker,
            host_key_private="PRIVATE",
            host_key_public="ssh-ed25519 AAAA",
            docker_volume=volume,
        )
    )
    configuration: dict[str, Any] = yaml.safe_load(rendered)
    return configuration


def test_a_machine_without_a_volume_hears_nothing_of_one() -> None:
    assert "volume" not in yaml.safe_dump(machine(None))


@pytest.mark.parametrize("unit", ["docker", "containerd"])
def test_docker_never_starts_without_its_volume(unit: str) -> None:
    files = {file["path"]: file["content"] for file in machine(VOLUME)["write_files"]}
    assert files[f"/etc/systemd/system/{unit}.service.d/30-docker-volume.conf"] == (
        "[Unit]\nRequires=mount-docker-volume.service\nAfter=mount-docker-volume.service\n"
    )


@pytest.mark.parametrize("install_docker", [True, False])
def test_an_engine_that_the_image_started_is_stopped_first(install_docker: bool) -> None:
    commands = machine(VOLUME, install_docker=install_docker)["runcmd"]
    assert commands[:2] == [["systemctl", "daemon-reload"], ["sh", "-c", START_ON_VOLUME]]
    assert commands[-1] == ["systemctl", "enable", "--now", "grow-docker-volume.timer"]


# On a real disk, in namespaces of its own, with the files where a machine has them.

_PREPARE = """
mount -t tmpfs tmpfs /dev
mknod -m 666 /dev/null c 1 3
mknod "$DISK" b "$MAJOR" "$MINOR"
mkdir -p /dev/disk/by-id
ln -s "$DISK" "/dev/disk/by-id/$NAME"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /usr/local
cp -a "$FILES/usr/local/." /usr/local/
mkdir -p /var/lib/cloud/data /var/lib/docker/image /run/grow
echo "$INSTANCE" > /var/lib/cloud/data/instance-id
echo baked > /var/lib/docker/image/layer
export RUNTIME_DIRECTORY=/run/grow
"""
Run = Callable[..., str]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """An empty disk of 64 MiB."""
    file = tmp_path / "disk"
    file.touch()
    os.truncate(file, 64 * MIB)
    made = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices: {made.stderr}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


@pytest.fixture
def on_machine(disk: str, tmp_path: Path) -> Run:
    """Runs a script on a machine with this disk that has not started Docker; its output."""
    folder = tmp_path / "files"
    for path, (content, permissions) in docker_volume_files(VOLUME).items():
        file = folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(int(permissions, 8))
    device = Path(disk).stat().st_rdev

    def run(script: str, *, instance: str = "i-1", name: str = NAMES[0]) -> str:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-euc", _PREPARE + dedent(script)],
            env={
                "PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                "DISK": disk,
                "MAJOR": str(os.major(device)),
                "MINOR": str(os.minor(device)),
                "FILES": str(folder),
                "NAME": name,
                "INSTANCE": instance,
                "BACKING": str(tmp_path / "disk"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def _has_capability(number: int) -> bool:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")]
    return bool(int(line.split()[1], 16) >> number & 1)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@as_root
@pytest.mark.parametrize("name", NAMES)
def test_the_disk_is_found_by_the_volumes_id(on_machine: Run, disk: str, name: str) -> None:
    assert on_machine("/usr/local/lib/find-docker-volume", name=name).splitlines()[-1] == disk


@as_root
def test_what_the_image_brought_and_all_that_comes_is_on_the_volume(on_machine: Run, disk: str) -> None:
    shown = on_machine("""
        mount-docker-volume
        cat /var/lib/docker/image/layer
        echo later > /var/lib/docker/later
        echo later > /var/lib/containerd/later
        mount-docker-volume
        for folder in docker containerd; do df --output=source "/var/lib/$folder" | tail -1; done
    """)
    assert shown.splitlines() == ["baked", disk, disk]
    # After a restart all of it is there again.
    again = on_machine("""
        mount-docker-volume
        cat /var/lib/docker/later /var/lib/containerd/later
    """)
    assert again.split() == ["later", "later"]


@as_root
def test_what_another_machine_left_does_not_come_back(on_machine: Run) -> None:
    on_machine("mount-docker-volume; echo manager > /var/lib/docker/container")
    assert on_machine("mount-docker-volume; ls /var/lib/docker", instance="i-2").split() == ["image"]


@as_root
def test_a_copy_that_broke_off_is_made_again(on_machine: Run) -> None:
    shown = on_machine("""
        mknod /dev/zero c 1 5
        head -c 100000000 /dev/zero > /var/lib/docker/image/large
        if mount-docker-volume 2>/dev/null; then echo mounted; fi
        if mountpoint -q /var/lib/docker; then echo mounted; fi
        rm /var/lib/docker/image/large
        mount-docker-volume
        ls /var/lib/docker/image
    """)
    assert shown.split() == ["layer"]


@as_root
def test_a_disk_that_holds_anything_is_not_formatted(on_machine: Run) -> None:
    shown = on_machine("""
        mkswap --label precious "$DISK" >/dev/null 2>&1
        if mount-docker-volume 2>/dev/null; then echo mounted; fi
        blkid -p -s LABEL -o value "$DISK"
    """)
    assert shown.split() == ["precious"]


@as_root
@pytest.mark.skipif(not _has_capability(CAP_SYS_RESOURCE), reason="this machine lets nobody resize a file system")
def test_the_file_system_follows_the_volume_while_it_is_used(on_machine: Run) -> None:
    shown = on_machine("""
        mount-docker-volume
        exec 3> /var/lib/docker/job
        truncate --size=128M "$BACKING"
        losetup --set-capacity "$DISK"
        grow-docker-volume >/dev/null 2>&1
        echo goes on >&3
        df --output=size --block-size=M /var/lib/docker | tail -1
    """)
    assert int(shown.strip(" M\n")) > 100


@as_root
def test_the_file_system_is_only_touched_when_the_volume_has_grown(on_machine: Run, disk: str) -> None:
    shown = on_machine("""
        mount-docker-volume
        printf '#!/bin/sh\\necho resize2fs "$@"\\n' > /usr/local/sbin/resize2fs
        chmod +x /usr/local/sbin/resize2fs
        grow-docker-volume
        grow-docker-volume
        truncate --size=128M "$BACKING"
        losetup --set-capacity "$DISK"
        grow-docker-volume
        grow-docker-volume
    """)
    assert shown.splitlines() == [f"resize2fs {disk}"] * 2
