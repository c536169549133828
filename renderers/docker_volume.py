"""What puts Docker's data on a volume of its own: a script before Docker starts, and one that follows its growth."""

from dataclasses import dataclass
from textwrap import dedent

MOUNT_SERVICE = "mount-docker-volume.service"
GROW_TIMER = "grow-docker-volume.timer"
_FIND = "/usr/local/lib/find-docker-volume"
_MOUNT = "/usr/local/sbin/mount-docker-volume"
_GROW = "/usr/local/sbin/grow-docker-volume"
# KVM's virtio disks show this many characters of the volume's id.
_SERIAL_LENGTH = 20
_SECONDS_TO_APPEAR = 60


@dataclass(frozen=True)
class DockerVolume:
    """A Cinder volume that is the machine's from its first boot on."""

    id: str
    """Cinder's id of the volume."""


def docker_volume_files(volume: DockerVolume) -> dict[str, tuple[str, str]]:
    """Content and permissions of the files, by path."""
    return {
        _FIND: (_find(volume.id), "0755"),
        _MOUNT: (_MOUNT_SCRIPT, "0755"),
        _GROW: (_GROW_SCRIPT, "0755"),
        f"/etc/systemd/system/{MOUNT_SERVICE}": (_MOUNT_UNIT, "0644"),
        # containerd has images and containers too, where Docker uses its image store.
        "/etc/systemd/system/containerd.service.d/30-docker-volume.conf": (_DROP_IN, "0644"),
        "/etc/systemd/system/docker.service.d/30-docker-volume.conf": (_DROP_IN, "0644"),
        "/etc/systemd/system/grow-docker-volume.service": (_GROW_UNIT, "0644"),
        f"/etc/systemd/system/{GROW_TIMER}": (_GROW_TIMER_UNIT, "0644"),
    }


# An image with Docker in it has started it before cloud-init wrote the files above.
START_ON_VOLUME = (
    f"systemctl is-active --quiet {MOUNT_SERVICE} || "
    f"{{ systemctl stop docker.socket docker.service containerd.service; systemctl start {MOUNT_SERVICE}; }}"
)


def _find(id_: str) -> str:
    # Nova gives the disk the volume's id as its serial, from which udev makes these names: on KVM for virtio, which has
    # room for a part of it, and SCSI; on ESXi as its WWN.
    serial = id_[:_SERIAL_LENGTH]
    return dedent(f"""\
        #!/bin/sh
        # Prints the disk that is the volume of this machine.
        for second in $(seq {_SECONDS_TO_APPEAR}); do
          for name in virtio-{serial} scsi-0QEMU_QEMU_HARDDISK_{serial} wwn-0x{id_.replace("-", "")}; do
            for disk in "/dev/disk/by-id/$name"*; do
              if [ -b "$disk" ]; then readlink -f "$disk"; exit; fi
            done
          done
          sleep 1
        done
        echo "volume {id_} is not among the disks of this machine" >&2
        exit 1
    """)


_MOUNT_SCRIPT = dedent(f"""\
    #!/bin/sh
    # Puts the data of Docker and containerd on the volume. A disk that holds anything is not formatted. What the image
    # brought is copied; what another machine left is removed: its containers would start here.
    set -eu
    volume=/var/lib/docker-volume
    disk=$({_FIND})
    status=0
    blkid -p "$disk" >/dev/null || status=$?
    case $status in
      0) ;;
      2) mkfs.ext4 -q "$disk" ;;
      *) echo "$disk holds something unknown (blkid: $status): it is left alone" >&2; exit 1 ;;
    esac
    mkdir -p "$volume" /var/lib/docker /var/lib/containerd
    mountpoint -q "$volume" || mount "$disk" "$volume"
    machine=$(cat /var/lib/cloud/data/instance-id)
    if [ "$(cat "$volume/machine" 2>/dev/null)" != "$machine" ]; then
      rm -rf "$volume/docker" "$volume/containerd"
      for name in docker containerd; do
        cp --archive --one-file-system "/var/lib/$name" "$volume/"
      done
      echo "$machine" > "$volume/machine"
    fi
    for name in docker containerd; do
      mountpoint -q "/var/lib/$name" || mount --bind "$volume/$name" "/var/lib/$name"
    done
""")

_GROW_SCRIPT = dedent(f"""\
    #!/bin/sh
    # Makes the file system as large as the volume, while it is in use.
    set -eu
    disk=$({_FIND})
    # SCSI disks tell their new size only when asked.
    rescan=/sys/class/block/${{disk##*/}}/device/rescan
    if [ -w "$rescan" ]; then echo 1 > "$rescan"; fi
    size=$(blockdev --getsize64 "$disk")
    if [ "$size" != "$(cat "$RUNTIME_DIRECTORY/size" 2>/dev/null)" ]; then
      resize2fs "$disk"
      echo "$size" > "$RUNTIME_DIRECTORY/size"
    fi
""")

_MOUNT_UNIT = dedent(f"""\
    [Unit]
    Description=Put Docker's data on its volume
    Before=containerd.service docker.service

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart={_MOUNT}
""")

_DROP_IN = dedent(f"""\
    [Unit]
    Requires={MOUNT_SERVICE}
    After={MOUNT_SERVICE}
""")

_GROW_UNIT = dedent(f"""\
    [Unit]
    Description=Follow the growth of Docker's volume
    Requires={MOUNT_SERVICE}
    After={MOUNT_SERVICE}

    [Service]
    Type=oneshot
    ExecStart={_GROW}
    RuntimeDirectory=grow-docker-volume
    RuntimeDirectoryPreserve=yes
""")

_GROW_TIMER_UNIT = dedent("""\
    [Unit]
    Description=Follow the growth of Docker's volume, every minute

    [Timer]
    OnBootSec=1min
    OnUnitInactiveSec=1min

    [Install]
    WantedBy=timers.target
""")
