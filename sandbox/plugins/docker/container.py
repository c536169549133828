"""The container: `docker.Container`."""

import io
import re
import tarfile
import time
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import PluginError, Resource, Work
from ..difference import Change
from ..facts import Habits
from ..values import Plain
from .plugin import CONTAINER_SECONDS, Engine, labels_of

Document = dict[str, Any]

MEGABYTE = 1024 * 1024
DURATION_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
RESTART_POLICIES = ("no", "on-failure", "always", "unless-stopped")
# What a container that is started may do before the official provider says that it does not run.
START_SECONDS = 15
# How long after its start a container is looked at, to find one that ends at once.
SETTLING_SECONDS = 0.3
# The properties that an update brings to a running container; the other ones that need no replacement concern only
# the provider itself (wait, destroyGraceSeconds, ...) or are kept in the state alone.
UPDATED = frozenset(
    {
        "restart",
        "maxRetryCount",
        "memory",
        "memorySwap",
        "memoryReservation",
        "cpuShares",
        "cpuSet",
        "cpuPeriod",
        "cpuQuota",
    }
)


class Container(Resource):
    """`docker.Container`.

    As in the official provider, environment, labels, volumes and uploads are never read back, and a container that
    must run and does not is one whose `mustRun` became false: the next update starts it.
    """

    token = "docker:index/container:Container"
    seconds = CONTAINER_SECONDS
    habits = Habits(
        auto_name=True,
        delete_before_replace=True,
        defaults={
            "attach": False,
            "containerReadRefreshTimeoutMilliseconds": START_SECONDS * 1000,
            "logs": False,
            "memoryReservation": 0,
            "mustRun": True,
            "networkMode": "bridge",
            "readOnly": False,
            "removeVolumes": True,
            "restart": "no",
            "rm": False,
            "start": True,
            "stdinOpen": False,
            "tty": False,
            "wait": False,
            "waitTimeout": 60,
        },
        element_defaults={
            "healthcheck": {
                "interval": "0s",
                "timeout": "0s",
                "startPeriod": "0s",
                "startInterval": "0s",
                "retries": 0,
            },
            "uploads": {"executable": False},
            "ports": {"ip": "0.0.0.0", "protocol": "tcp"},
            "devices": {"permissions": "rwm"},
        },
        sets=frozenset(
            {
                "capabilities.adds",
                "capabilities.drops",
                "devices",
                "dns",
                "dnsOpts",
                "dnsSearches",
                "envs",
                "groupAdds",
                "hosts",
                "labels",
                "mounts",
                "networksAdvanced",
                "networksAdvanced.aliases",
                "securityOpts",
                "ulimits",
                "uploads",
                "volumes",
            }
        ),
        filled_in=frozenset({"ports"}),
        refused=frozenset(
            {
                "deviceReadBps",
                "deviceReadIops",
                "deviceRequests",
                "deviceWriteBps",
                "deviceWriteIops",
                "gpus",
                "logs",
            }
        ),
    )

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        faults = []
        restart = wanted.get("restart")
        if isinstance(restart, str) and restart not in RESTART_POLICIES:
            faults.append(("restart", f"must be one of {', '.join(RESTART_POLICIES)}, not {restart!r}"))
        for i, upload in enumerate(wanted.get("uploads") or [] if isinstance(wanted.get("uploads"), list) else []):
            if isinstance(upload, dict):
                sources = [name for name in ("content", "contentBase64", "source") if name in upload]
                if len(sources) != 1:
                    faults.append((f"uploads[{i}]", "needs exactly one of content, contentBase64 and source"))
        if isinstance(healthcheck := wanted.get("healthcheck"), dict):
            for name in ("interval", "timeout", "startPeriod", "startInterval"):
                value = healthcheck.get(name)
                if isinstance(value, str) and _nanoseconds(value) is None:
                    faults.append((f"healthcheck.{name}", f"must be a duration such as 30s or 1m30s, not {value!r}"))
        return faults

    def create(self, wanted: Plain, work: Work) -> None:
        from docker.errors import ImageNotFound  # noqa: PLC0415

        client = self.engine.client
        body = container_request(wanted)
        try:
            made = client.create_container_from_config(body, wanted["name"], wanted.get("platform"))
        except ImageNotFound:
            self.engine.find_image(wanted["image"], wanted.get("platform"))
            made = client.create_container_from_config(body, wanted["name"], wanted.get("platform"))
        id: str = made["Id"]
        work.made(id)
        if networks := wanted.get("networksAdvanced"):
            client.disconnect_container_from_network(id, "bridge")
            for network in networks:
                client.connect_container_to_network(
                    id,
                    network["name"],
                    aliases=network.get("aliases"),
                    ipv4_address=network.get("ipv4Address"),
                    ipv6_address=network.get("ipv6Address"),
                    link_local_ips=network.get("linkLocalIps"),
                    mac_address=network.get("macAddress"),
                )
        for upload in wanted.get("uploads", []):
            client.put_archive(id, "/", _archive(upload))
        if wanted.get("start", True):
            self._start(id, wanted, work)
            if wanted.get("attach"):
                client.wait(id)

    def read(self, id: str, state: Plain) -> Plain | None:
        container = self._inspect(id)
        return None if container is None else container_outputs(container, state)

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        if changes.keys() & UPDATED:
            host = container_request(wanted)["HostConfig"]
            members = ("Memory", "MemorySwap", "MemoryReservation", "CpuShares", "CpusetCpus", "CpuPeriod", "CpuQuota")
            request = {name: host[name] for name in members if name in host}
            client = self.engine.client
            url = client.base_url + f"/v{client.api_version}/containers/{id}/update"
            answer = client.post(url, json={**request, "RestartPolicy": host["RestartPolicy"]}, timeout=client.timeout)
            if not answer.ok:
                raise PluginError(f"unable to update the container: {answer.text.strip()}")
        if "mustRun" in changes and wanted.get("mustRun", True):
            self._start(id, wanted, work)

    def delete(self, id: str, state: Plain, work: Work) -> None:
        from docker.errors import APIError, NotFound  # noqa: PLC0415

        client = self.engine.client
        try:
            # Without destroyGraceSeconds it is killed at once; the container's own stopTimeout does not count.
            client.stop(id, timeout=state.get("destroyGraceSeconds", 0))
            client.remove_container(id, v=state.get("removeVolumes", True), force=True)
        except NotFound:
            return
        except APIError as error:
            if "is already in progress" not in str(error):
                raise
        work.wait(f"container {id[:12]} to be removed", lambda: self._inspect(id) is None or None)

    def _inspect(self, id: str) -> Document | None:
        from docker.errors import NotFound  # noqa: PLC0415

        try:
            container: Document = self.engine.client.inspect_container(id)
        except NotFound:
            return None
        return container

    def _start(self, id: str, wanted: Plain, work: Work) -> None:
        self.engine.client.start(id)
        if wanted.get("wait"):
            waiting = Work(wanted.get("waitTimeout", 60), work.cancelled)
            waiting.wait(f"container {id[:12]} to become healthy", lambda: self._healthy(id), first=0.5)
        if wanted.get("mustRun", True) and not wanted.get("attach"):
            self._see_it_run(id)

    def _healthy(self, id: str) -> bool | None:
        container = self._inspect(id)
        if container is None:
            raise PluginError("the container vanished while it was being waited for")
        if "Health" not in container["State"]:
            raise PluginError("wait needs a healthcheck, and neither the container nor its image has one")
        return container["State"]["Health"]["Status"] == "healthy" or None

    def _see_it_run(self, id: str) -> None:
        time.sleep(SETTLING_SECONDS)
        container = self._inspect(id)
        if container is None or not container["State"]["Running"]:
            code = container["State"]["ExitCode"] if container else "unknown"
            logs = self.engine.client.logs(id, tail=5).decode(errors="replace").strip() if container else ""
            raise PluginError(f"container exited immediately with exit code {code}{f': {logs}' if logs else ''}")


def container_request(wanted: Plain) -> Document:
    """The body of the Engine API's ContainerCreate for a container's inputs."""
    binds, anonymous, others = _volumes(wanted.get("volumes", []))
    exposed, bindings = _ports(wanted.get("ports", []))
    capabilities = wanted.get("capabilities", {})
    healthcheck = wanted.get("healthcheck")
    host = _given(
        Binds=binds,
        VolumesFrom=others,
        Mounts=[_mount(mount) for mount in wanted.get("mounts", [])],
        PortBindings=bindings,
        Privileged=wanted.get("privileged"),
        PublishAllPorts=wanted.get("publishAllPorts"),
        AutoRemove=wanted.get("rm"),
        ReadonlyRootfs=wanted.get("readOnly"),
        NetworkMode=wanted.get("networkMode"),
        LogConfig=_given(Type=wanted.get("logDriver"), Config=wanted.get("logOpts")),
        Tmpfs=wanted.get("tmpfs"),
        ExtraHosts=[f"{entry['host']}:{entry['ip']}" for entry in wanted.get("hosts", [])],
        Ulimits=[
            {"Name": limit["name"], "Soft": limit["soft"], "Hard": limit["hard"]} for limit in wanted.get("ulimits", [])
        ],
        CapAdd=capabilities.get("adds"),
        CapDrop=capabilities.get("drops"),
        Devices=[_device(device) for device in wanted.get("devices", [])],
        DeviceCgroupRules=wanted.get("deviceCgroupRules"),
        Dns=wanted.get("dns"),
        DnsOptions=wanted.get("dnsOpts"),
        DnsSearch=wanted.get("dnsSearches"),
        SecurityOpt=wanted.get("securityOpts"),
        StorageOpt=wanted.get("storageOpts"),
        Sysctls=wanted.get("sysctls"),
        Memory=_bytes(wanted.get("memory")),
        MemorySwap=_bytes(wanted.get("memorySwap")),
        MemoryReservation=_bytes(wanted.get("memoryReservation")),
        ShmSize=_bytes(wanted.get("shmSize")),
        CpuShares=wanted.get("cpuShares"),
        CpusetCpus=wanted.get("cpuSet"),
        CpuPeriod=wanted.get("cpuPeriod"),
        CpuQuota=wanted.get("cpuQuota"),
        NanoCpus=round(float(wanted["cpus"]) * 10**9) if wanted.get("cpus") else None,
        UsernsMode=wanted.get("usernsMode"),
        PidMode=wanted.get("pidMode"),
        IpcMode=wanted.get("ipcMode"),
        CgroupnsMode=wanted.get("cgroupnsMode"),
        CgroupParent=wanted.get("cgroupParent"),
        GroupAdd=wanted.get("groupAdds"),
        Runtime=wanted.get("runtime"),
    )
    host["Init"] = wanted.get("init", False)
    host["RestartPolicy"] = {
        "Name": wanted.get("restart", "no"),
        "MaximumRetryCount": wanted.get("maxRetryCount", 0),
    }
    return _given(
        Image=wanted["image"],
        Hostname=wanted.get("hostname"),
        Domainname=wanted.get("domainname"),
        Tty=wanted.get("tty"),
        OpenStdin=wanted.get("stdinOpen"),
        Env=wanted.get("envs"),
        Cmd=wanted.get("command"),
        Entrypoint=wanted.get("entrypoints"),
        User=wanted.get("user"),
        WorkingDir=wanted.get("workingDir"),
        ExposedPorts=exposed,
        Volumes=anonymous,
        Labels=labels_of(wanted.get("labels", [])),
        Healthcheck=_healthcheck(healthcheck) if healthcheck else None,
        StopSignal=wanted.get("stopSignal"),
        StopTimeout=wanted.get("stopTimeout"),
        HostConfig=host,
    )


def container_outputs(container: Document, state: Plain) -> Plain:
    """A container's properties from the Engine API's ContainerInspect."""
    config, host, network = container["Config"], container["HostConfig"], container["NetworkSettings"]
    running = container["State"]["Running"]
    return {
        "name": container["Name"].removeprefix("/"),
        "image": container["Image"],
        # Not what the image has besides; but an empty list is kept, else the official provider expects to be told.
        "envs": state.get("envs", []),
        "mustRun": state.get("mustRun", True) and (running or not state.get("start", True)),
        "exitCode": None if running else container["State"]["ExitCode"],
        "bridge": network.get("Bridge", ""),
        "networkDatas": [
            {
                "networkName": name,
                "gateway": data["Gateway"],
                "ipAddress": data["IPAddress"],
                "ipPrefixLength": data["IPPrefixLen"],
                "ipv6Gateway": data["IPv6Gateway"],
                "globalIpv6Address": data["GlobalIPv6Address"],
                "globalIpv6PrefixLength": data["GlobalIPv6PrefixLen"],
                "macAddress": data.get("MacAddress") or "",
            }
            for name, data in (network.get("Networks") or {}).items()
        ],
        "ports": _published(network.get("Ports") or {}) or None,
        "hostname": config["Hostname"],
        "domainname": config["Domainname"],
        "command": config["Cmd"] or [],
        "entrypoints": config["Entrypoint"] or [],
        "user": config["User"],
        "workingDir": config["WorkingDir"],
        "tty": config["Tty"],
        "stdinOpen": config["OpenStdin"],
        "stopSignal": config.get("StopSignal"),
        "stopTimeout": config.get("StopTimeout"),
        "healthcheck": _read_healthcheck(config.get("Healthcheck"), state.get("healthcheck")),
        "rm": host["AutoRemove"],
        "readOnly": host["ReadonlyRootfs"],
        "privileged": host["Privileged"],
        "publishAllPorts": host["PublishAllPorts"],
        "restart": host["RestartPolicy"]["Name"] or "no",
        "maxRetryCount": host["RestartPolicy"]["MaximumRetryCount"],
        "dns": host.get("Dns") or [],
        "dnsOpts": host.get("DnsOptions") or [],
        "dnsSearches": host.get("DnsSearch") or [],
        "securityOpts": host.get("SecurityOpt") or [],
        "init": bool(host.get("Init")),
        "runtime": host["Runtime"],
        "memory": host["Memory"] // MEGABYTE,
        "memorySwap": host["MemorySwap"] // MEGABYTE if host["MemorySwap"] > 0 else host["MemorySwap"],
        "memoryReservation": host["MemoryReservation"] // MEGABYTE,
        "shmSize": host["ShmSize"] // MEGABYTE,
        "cpuShares": host["CpuShares"],
        "cpuSet": host["CpusetCpus"],
        "cpuPeriod": host["CpuPeriod"],
        "cpuQuota": host["CpuQuota"],
        "logDriver": host["LogConfig"]["Type"],
        "logOpts": host["LogConfig"]["Config"] or {},
        "storageOpts": host.get("StorageOpt") or {},
        "tmpfs": host.get("Tmpfs") or {},
        "sysctls": host.get("Sysctls") or {},
        # "default" is what older engines call the bridge.
        "networkMode": "bridge" if host["NetworkMode"] == "default" else host["NetworkMode"],
        "pidMode": host["PidMode"],
        "ipcMode": host["IpcMode"],
        "usernsMode": host["UsernsMode"],
        "groupAdds": host.get("GroupAdd") or [],
    }


def _given(**members: Any) -> Document:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value not in (None, "", [], {})}


def _bytes(megabytes: int | None) -> int | None:
    """-1 stands for no limit and stays."""
    return megabytes if megabytes is None or megabytes < 0 else megabytes * MEGABYTE


def _volumes(volumes: list[Plain]) -> tuple[list[str], Document, list[str]]:
    """Mounts from the host or of named volumes, anonymous volumes, and containers whose volumes are shared."""
    binds: list[str] = []
    anonymous: Document = {}
    others: list[str] = []
    for volume in volumes:
        path, source = volume.get("containerPath"), volume.get("hostPath") or volume.get("volumeName")
        if other := volume.get("fromContainer"):
            others.append(f"{other}:ro" if volume.get("readOnly") else other)
        elif source:
            options = ["ro" if volume.get("readOnly") else "rw", *filter(None, [volume.get("selinuxRelabel")])]
            binds.append(f"{source}:{path}:{','.join(options)}")
        elif path:
            anonymous[path] = {}
        else:
            raise PluginError("a volume of a container needs a containerPath or a fromContainer")
    return binds, anonymous, others


def _mount(mount: Plain) -> Document:
    bind, volume, tmpfs = (mount.get(f"{kind}Options", {}) for kind in ("bind", "volume", "tmpfs"))
    driver = _given(Name=volume.get("driverName"), Options=volume.get("driverOptions"))
    return _given(
        Type=mount["type"],
        Target=mount["target"],
        Source=mount.get("source"),
        ReadOnly=mount.get("readOnly"),
        BindOptions=_given(Propagation=bind.get("propagation")),
        VolumeOptions=_given(
            NoCopy=volume.get("noCopy"),
            Labels=labels_of(volume.get("labels", [])),
            DriverConfig=driver,
            Subpath=volume.get("subpath"),
        ),
        TmpfsOptions=_given(SizeBytes=tmpfs.get("sizeBytes"), Mode=tmpfs.get("mode")),
    )


def _device(device: Plain) -> Document:
    return {
        "PathOnHost": device["hostPath"],
        "PathInContainer": device.get("containerPath") or device["hostPath"],
        "CgroupPermissions": device.get("permissions", "rwm"),
    }


def _ports(ports: list[Plain]) -> tuple[Document, Document]:
    exposed: Document = {}
    bindings: dict[str, list[Document]] = {}
    for port in ports:
        key = f"{port['internal']}/{port.get('protocol', 'tcp')}"
        exposed[key] = {}
        external = port.get("external")
        binding = _given(HostPort=str(external) if external else None, HostIp=port.get("ip"))
        bindings.setdefault(key, []).append(binding)
    return exposed, bindings


def _published(ports: Mapping[str, list[Document] | None]) -> list[Plain]:
    """Published ports, in order; the engine's second entry for IPv6 is left out."""
    published = []
    for key, bindings in sorted(ports.items()):
        internal, _, protocol = key.partition("/")
        for binding in bindings or []:
            if binding["HostIp"] != "::":
                published.append(
                    {
                        "internal": int(internal),
                        "external": int(binding["HostPort"]),
                        "ip": binding["HostIp"],
                        "protocol": protocol,
                    }
                )
    return published


def _healthcheck(check: Plain) -> Document:
    return _given(
        Test=check.get("tests"),
        Interval=_nanoseconds(check.get("interval", "0s")) or None,
        Timeout=_nanoseconds(check.get("timeout", "0s")) or None,
        StartPeriod=_nanoseconds(check.get("startPeriod", "0s")) or None,
        StartInterval=_nanoseconds(check.get("startInterval", "0s")) or None,
        Retries=check.get("retries") or None,
    )


def _read_healthcheck(check: Document | None, known: Plain | None) -> Plain | None:
    """A healthcheck, written as the program wrote it where it means the same."""
    if not check:
        return None
    if known and _healthcheck(known) == {name: value for name, value in check.items() if value}:
        return known
    return {
        "tests": check.get("Test") or [],
        "interval": _duration(check.get("Interval", 0)),
        "timeout": _duration(check.get("Timeout", 0)),
        "startPeriod": _duration(check.get("StartPeriod", 0)),
        "retries": check.get("Retries", 0),
    }


def _nanoseconds(text: str) -> int | None:
    """A duration in Go's notation (1m30s, 500ms); None when it is not one."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return round(sum(float(number) * DURATION_UNITS[unit] for number, unit in parts))


def _duration(nanoseconds: int) -> str:
    """A duration in Go's notation."""
    seconds = nanoseconds / DURATION_UNITS["s"]
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    rest = f"{seconds % 60:g}s"
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}" if minutes else rest


def _archive(upload: Plain) -> bytes:
    """A tar file with the one file to upload, for the root of the container's file system."""
    if "source" in upload:
        content = Path(upload["source"]).read_bytes()
    elif "contentBase64" in upload:
        content = b64decode(upload["contentBase64"])
    else:
        content = upload["content"].encode()
    entry = tarfile.TarInfo(upload["file"].lstrip("/"))
    entry.mode = (
        int(upload["permissions"], 8) if upload.get("permissions") else 0o744 if upload.get("executable") else 0o644
    )
    entry.size = len(content)
    # In whole seconds, as the official provider's. GitLab Runner reads its configuration again when this is later.
    entry.mtime = int(time.time())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
