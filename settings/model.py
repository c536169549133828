"""The stack file's model: every key, its type, its default and its meaning.

Keys are camelCase in the stack file, as everywhere in Pulumi. Descriptions give the unit of sizes and times.
"""

import json
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from cryptography import x509
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import WithJsonSchema

from renderers.metrics import METRICS_PORT
from settings import ssh
from settings.advanced import ManagerKeys, RunnerKeys
from settings.isolation import volume_mistake
from settings.networks import canonical

# IPv6 needs 1280 bytes on every link (RFC 8200, section 5); 9216 is the largest jumbo frame that switches carry.
MINIMUM_MTU = 1280
MAXIMUM_MTU = 9216
# GitLab refuses a runner's maximum job timeout below ten minutes (Runners API, maximum_timeout).
MINIMUM_TIMEOUT_SECONDS = 600
# The name of a bucket (S3, "Bucket naming rules").
BUCKET = r"^[a-z0-9][a-z0-9.-]+[a-z0-9]$"
# A DNS label (RFC 1123), which a host name must be.
LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
MAXIMUM_NAME_LENGTH = 63
# Pulumi appends "-" and seven hexadecimal digits to the name of a container.
NAME_SUFFIX_LENGTH = 8
MAXIMUM_HOSTS = 99
# GitLab's limits for a tag's name and for a runner's texts.
MAXIMUM_TAG_LENGTH = 255
MAXIMUM_TEXT_LENGTH = 1024
# Nova's limits for the tags and the metadata of a server (Compute API, "Server tags" and "Server metadata").
MAXIMUM_CLOUD_TAG_LENGTH = 60
MAXIMUM_CLOUD_TAGS = 50
MAXIMUM_METADATA_LENGTH = 255
_METADATA_KEY = rf"[a-zA-Z0-9\-_:. ]{{1,{MAXIMUM_METADATA_LENGTH}}}"
# Docker starts no container with less memory: 6 MiB.
MINIMUM_MEMORY_BYTES = 6 << 20
_MEMORY = r"^[1-9][0-9]*[kmg]$"
_CERTIFICATE = r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
_WINDOW = r"([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]"
_CPUS = r"^[0-9]+(\.[0-9]+)?$"
# What GitLab keeps about a runner; a runner with a token of its own was registered elsewhere.
REGISTRATION_FIELDS = {
    "description",
    "tags",
    "run_untagged",
    "locked",
    "protected",
    "paused",
    "maintenance_note",
    "rotation",
}


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _tag(value: str) -> str:
    if not value or value != value.strip() or "," in value or len(value) > MAXIMUM_TAG_LENGTH:
        raise ValueError("is not a runner tag; use 1 to 255 characters without a comma or outer blanks")
    return value


def _cloud_tag(value: str) -> str:
    if not re.fullmatch(r"[^,/]+", value) or value != value.strip() or len(value) > MAXIMUM_CLOUD_TAG_LENGTH:
        raise ValueError(
            f"is not a tag of OpenStack; use 1 to {MAXIMUM_CLOUD_TAG_LENGTH} characters without a comma, a slash or "
            "outer blanks"
        )
    return value


def _metadata(values: dict[str, str]) -> dict[str, str]:
    for key, value in values.items():
        if not re.fullmatch(_METADATA_KEY, key):
            raise ValueError(
                f"{json.dumps(key)} is not a key of Nova's metadata; use 1 to {MAXIMUM_METADATA_LENGTH} letters, "
                "digits, blanks and - _ : ."
            )
        if len(value) > MAXIMUM_METADATA_LENGTH:
            raise ValueError(f"{key}: has {len(value)} characters; Nova takes {MAXIMUM_METADATA_LENGTH}")
    return values


def _mtu(value: Any) -> Any:
    if value == "auto" or (type(value) is int and MINIMUM_MTU <= value <= MAXIMUM_MTU):
        return value
    raise ValueError(f'must be "auto" or a number of bytes from {MINIMUM_MTU} (IPv6 needs that much) to {MAXIMUM_MTU}')


def _docker_url(value: str) -> str:
    url = urlsplit(value)
    known = {"unix": url.path.startswith("/"), "ssh": ssh.is_url(value), "tcp": bool(url.hostname)}
    if known.get(url.scheme, False):
        return value
    raise ValueError("must be unix:///path, ssh://user@host[:port] or tcp://host:port")


def _web_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme in {"http", "https"} and url.hostname:
        return value.rstrip("/")
    raise ValueError("must be an http:// or https:// URL")


def _mirror(value: str) -> str:
    # dockerd refuses everything else (dockerd reference, --registry-mirror), and user_data must hold no secret.
    url = urlsplit(value)
    origin = f"{url.scheme}://{url.netloc}"
    if url.scheme in {"http", "https"} and url.hostname and "@" not in origin and value.rstrip("/") == origin:
        return origin
    raise ValueError("must be http:// or https:// with a host and perhaps a port; no user, no path")


def _proxy(value: str) -> str:
    # Jobs and the metadata service would tell a password.
    url = urlsplit(value)
    origin = f"{url.scheme}://{url.netloc}"
    if (
        url.scheme in {"http", "https"}
        and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", url.netloc)
        and origin == value.rstrip("/")
    ):
        return origin
    raise ValueError(
        "must be http:// or https:// with a host and perhaps a port; no user or password: jobs can read it"
    )


def _certificate(value: str) -> str:
    # What is beside a certificate, a key for instance, would be in user_data.
    text = value.strip()
    try:
        if re.fullmatch(_CERTIFICATE, text):
            x509.load_pem_x509_certificate(text.encode())
            return text + "\n"
    except ValueError:
        pass
    raise ValueError("must be one certificate in PEM: -----BEGIN CERTIFICATE----- …")


def _s3_server(value: str) -> str:
    # GitLab Runner takes https:// or, with `insecure`, http://, and nothing behind it.
    if re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?", value):
        return value
    raise ValueError("must be a host and perhaps a port, without https:// and without a path: s3.example.com:9000")


def _registry(value: str) -> str:
    # GitLab Runner finds a login by what the image's name begins with, the longest first.
    if re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[a-z0-9._-]+)*", value):
        return value
    raise ValueError("must be what images begin with: registry.example.com:5000 or registry.example.com/team")


def _host_key(value: str) -> str:
    if re.fullmatch(r"(ssh-|ecdsa-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?", value.strip()):
        return " ".join(value.split()[:2])
    raise ValueError("must be a public SSH host key like: ssh-ed25519 AAAA…")


def _host(value: Any) -> Any:
    if (type(value) is int and value >= 1) or (isinstance(value, str) and value):
        return value
    raise ValueError("must be a host's number or name, like 2 or <stack>-2")


def _plugin(value: str) -> str:
    name, _, version = value.rpartition(":")
    if re.fullmatch(r"[a-z0-9][a-z0-9.:/_-]*", name) and re.fullmatch(r"[0-9][0-9A-Za-z._-]*", version):
        return value
    raise ValueError("must be a reference with a version, like ghcr.io/sardinasystems/fleeting-plugin-openstack:1.2.3")


def _time_zone(value: str) -> str:
    known = available_timezones()
    # A machine may have no list of them.
    if value in known or not known:
        return value
    raise ValueError("is not a time zone; write one like UTC or Europe/Berlin")


def _window(value: str) -> str:
    if re.fullmatch(_WINDOW, value) and value[:5] != value[6:]:
        return value
    raise ValueError("must be two times of day, like 02:00-05:00 (UTC)")


def _flag(value: Any) -> Any:
    # Pulumi hands a scalar of the configuration over as text.
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _volume(value: str) -> str:
    mistake = volume_mistake(value)
    if mistake is not None:
        raise ValueError(mistake)
    return value


def _memory(value: str) -> str:
    if re.fullmatch(_MEMORY, value):
        factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[value[-1]]
        if int(value[:-1]) * factor >= MINIMUM_MEMORY_BYTES:
            return value
    raise ValueError("must be a whole number with k, m or g like 512m or 2g, and at least 6m")


def _cpus(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    if re.fullmatch(_CPUS, text) and float(text) > 0:
        return text
    raise ValueError("must be a number of processors above 0, like 2 or 1.5")


Flag = Annotated[bool, BeforeValidator(_flag)]
Cidr = Annotated[str, AfterValidator(canonical)]
Cidrs = Annotated[tuple[Cidr, ...], AfterValidator(_once)]
CloudTag = Annotated[str, AfterValidator(_cloud_tag)]
CloudTags = Annotated[tuple[CloudTag, ...], AfterValidator(_once), Field(max_length=MAXIMUM_CLOUD_TAGS)]
Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]
Tag = Annotated[str, AfterValidator(_tag)]
Mtu = Annotated[
    int | str,
    BeforeValidator(_mtu),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": MINIMUM_MTU, "maximum": MAXIMUM_MTU}]}),
]
HostReference = Annotated[
    int | str,
    BeforeValidator(_host),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "minLength": 1}]}),
]
Name = Annotated[str, Field(pattern=LABEL, max_length=MAXIMUM_NAME_LENGTH)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
Certificate = Annotated[str, AfterValidator(_certificate)]
Mirror = Annotated[str, AfterValidator(_mirror)]
NonEmpty = Annotated[str, Field(min_length=1)]
S3Server = Annotated[str, AfterValidator(_s3_server)]
RegistryName = Annotated[str, AfterValidator(_registry)]
PublicKey = Annotated[str, AfterValidator(_host_key)]
Secret = Annotated[
    SecretStr,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]},
            ]
        }
    ),
]
PullPolicy = Literal["always", "if-not-present", "never"]
Volume = Annotated[str, Field(min_length=1), AfterValidator(_volume)]
Memory = Annotated[
    str, AfterValidator(_memory), WithJsonSchema({"type": "string", "pattern": _MEMORY, "examples": ["2g"]})
]
Cpus = Annotated[
    str,
    BeforeValidator(_cpus),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": _CPUS}]}),
]


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        strict=True,
        use_attribute_docstrings=True,
    )


class Ssh(_Model):
    """How SSH reaches the hosts. Keys come from the SSH agent and from ~/.ssh/config, as with `ssh` itself."""

    user: Annotated[str, AfterValidator(ssh.user)] = "debian"
    """Login on the virtual machine; the image's default user (debian, ubuntu, …)."""
    port: int = Field(22, ge=1, le=65535)
    """TCP port of sshd."""
    address: Literal["fixed", "floating"] | None = None
    """Which address SSH uses; floating when `floatingIpPool` is set, else fixed. With `fixed` a floating IP outlives
    its machine: it moves to the next one when the jobs of the old one have ended."""
    jump_host: Annotated[str, AfterValidator(ssh.jump_host)] | None = None
    """Bastion to go through: [user@]host[:port], as for `ssh -J`."""
    identity_file: Annotated[str, AfterValidator(ssh.identity_file)] | None = None
    """Private key file, when the SSH agent does not hold the key; a relative path starts at the project's folder."""
    options: dict[str, str] = Field(default_factory=dict)
    """Further options of ssh_config(5) that tune the connection, like ServerAliveCountMax or Ciphers; what starts
    programs, forwards or checks the host key differently belongs into your own ~/.ssh/config."""

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        ssh.usual_options(self.options)
        return self

    @property
    def usual_options(self) -> dict[str, str]:
        """`options` by the names that ssh_config(5) has for them."""
        return ssh.usual_options(self.options)


class KeyPair(_Model):
    """The key pair that may log in: one that exists, by its name, or a public key from which one is made."""

    name: NonEmpty | None = None
    """Name of an existing Nova key pair."""
    public_key: PublicKey | None = None
    """OpenSSH public key."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.name is None) == (self.public_key is None):
            raise ValueError("needs exactly one of name and publicKey")
        return self


class BootVolume(_Model):
    """A Cinder volume to boot from, made from the image and deleted with the virtual machine."""

    size: int = Field(ge=1)
    """Size in GiB."""
    type: NonEmpty | None = None
    """Volume type; the cloud's default when absent."""


class DockerVolume(_Model):
    """A Cinder volume for Docker's data: images, containers, volumes, build cache. It belongs to its machine: another
    machine gets a new one, and it is deleted with the machine."""

    size: int = Field(ge=1)
    """Size in GiB. A larger one grows the volume in place, under running jobs; a smaller one is refused."""
    type: NonEmpty | None = None
    """Volume type; the cloud's default when absent. Another one replaces the machines."""
    availability_zone: NonEmpty | None = None
    """Cinder availability zone; the cloud's default when absent. Another one replaces the machines."""
    same_zone: Flag = False
    """In the availability zone of its machine, for a cloud that attaches no volume of another one (Nova's
    `cross_az_attach`)."""

    @model_validator(mode="after")
    def _one_zone(self) -> Self:
        if self.same_zone and self.availability_zone is not None:
            raise ValueError("has both availabilityZone and sameZone; leave one out")
        return self


class Prune(_Model):
    """What the machines remove by themselves: what jobs left behind and no container uses, looked at every quarter of
    an hour. The managers' images and volumes, and what jobs use, stay."""

    older_than_hours: int = Field(168, ge=1)
    """Hours for which an image, a cache volume or build cache was not used, or that a stopped container of a job is
    old; not less than the longest `maximumTimeout`."""
    free_percent: int = Field(20, ge=0, le=90)
    """When less than this percentage of the disk is free, an hour without use is enough."""


class Updates(_Model):
    """Unattended security updates, on Debian and Ubuntu. What restarts the engine waits for the window, and so does the
    machine's own restart, where an update asks for one (a kernel's does): then jobs end first."""

    reboot_window: Annotated[
        str, AfterValidator(_window), WithJsonSchema({"type": "string", "pattern": f"^{_WINDOW}$"})
    ]
    """When the managers stop taking jobs for it: two times of day, UTC, like 02:00-05:00. The machines of a stack begin
    at different times; each restarts when its last job has ended."""


class Proxy(_Model):
    """The HTTP proxy between a host and the world."""

    http: ProxyUrl | None = None
    """Proxy for http:// URLs: http://host:port. No user and password: jobs can read it."""
    https: ProxyUrl | None = None
    """Proxy for https:// URLs."""
    no_proxy: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:/*-]+$")], ...] = ()
    """Names, domains (.example.com), addresses and networks that are reached without it, besides the host itself and
    a job's Docker-in-Docker."""

    @model_validator(mode="after")
    def _any(self) -> Self:
        if self.http is None and self.https is None:
            raise ValueError("needs http, https or both")
        return self


def _off(value: Any) -> Any:
    # The stack file says false where Python says None.
    return None if value is False else value


def _off_is_false(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"const": False} if kind == {"type": "null"} else kind for kind in schema["anyOf"]]


class HostOverride(_Model):
    """What one machine has instead of what its stack's machines have."""

    flavor: NonEmpty | None = None
    """Flavor, by name or id."""
    image: NonEmpty | None = None
    """Image with cloud-init, by name or id."""
    availability_zone: NonEmpty | None = None
    """Nova availability zone."""
    metadata: Metadata = Field(default_factory=dict)
    """Nova metadata, besides that of all machines."""


class RegistryLogin(_Model):
    """Who images are pulled as: let it be one who may read and nothing else."""

    user: NonEmpty
    """User, or the name of a token."""
    password: Secret
    """Password or token."""


class RegistryCache(_Model):
    """A pull-through cache of Docker Hub on each machine."""

    image: NonEmpty = "registry:3.0.0"
    """Image of CNCF Distribution, 2 or 3."""
    upstream: Mirror = "https://registry-1.docker.io"
    """What is cached: Docker Hub, or a mirror of it."""
    login: RegistryLogin | None = None
    """Who it is pulled as. Every job gets what this user may pull."""


class OpenStackHost(_Model):
    """Virtual machines made in OpenStack."""

    kind: Literal["openstack"]
    count: int = Field(1, ge=1, le=MAXIMUM_HOSTS)
    """How many virtual machines; every runner has a manager on each."""
    flavor: NonEmpty
    """Flavor, by name or id."""
    image: NonEmpty
    """Image with cloud-init, by name or id. Prefer the id: a name that moves to a newer image replaces the machines."""
    network: NonEmpty
    """Network, by name or id, which SSH and the floating IP use."""
    additional_networks: tuple[NonEmpty, ...] = ()
    """Further networks to attach, by name or id."""
    floating_ip_pool: NonEmpty | None = None
    """External network from which each machine gets a floating IP, and its replacement another one, unless
    `ssh.address` is `fixed`."""
    boot_volume: BootVolume | None = None
    """Boot from a volume instead of the flavor's local disk."""
    docker_volume: DockerVolume | None = None
    """Keep Docker's data on a volume of its own instead of the disk that the machine boots from."""
    availability_zone: NonEmpty | None = None
    """Nova availability zone of all machines."""
    availability_zones: tuple[NonEmpty, ...] = ()
    """Nova availability zones to spread the machines over, instead of one: they take turns, by their numbers, so that
    another `count` moves none. Another list moves those whose turn changes: they are replaced."""
    overrides: dict[NonEmpty, HostOverride] = Field(default_factory=dict)
    """What single machines have instead, by their number (`2`) or their name (`<stack>-2`)."""
    anti_affinity: Literal["soft", "hard", "none"] = "soft"
    """Whether the machines of a stack avoid each other's hypervisor; only used when count is above 1."""
    key_pair: KeyPair
    ssh_from: Cidrs = Field(min_length=1)
    """CIDRs from which SSH is allowed, in any spelling. Nothing else may come in, but for `metricsFrom`."""
    ssh: Ssh = Ssh()
    mtu: Mtu = "auto"
    """Docker's MTU in bytes: auto takes the smallest of the attached networks' from Neutron, a number overrides it."""
    ipv6: Flag = False
    """Containers have IPv6 addresses too, on every network of jobs and inside of Docker-in-Docker: unique local ones,
    which the machine translates into its own. Needs a network with an IPv6 subnet, and Docker 28.0.1 or newer."""
    docker: Literal["distribution", "preinstalled"] = "distribution"
    """Where Docker comes from: installed by cloud-init from the distribution (docker.io), or already in the image."""
    registry_mirrors: tuple[Mirror, ...] = ()
    """Mirrors of Docker Hub, tried in this order, for the machines' own engine and for Docker-in-Docker."""
    registry_cache: RegistryCache | None = None
    """A mirror of Docker Hub on each machine itself, which its own engine and Docker-in-Docker ask first; none when
    absent."""
    ca_certificates: tuple[Certificate, ...] = ()
    """Certificates of your own CAs, in PEM, which the machines, the managers and Docker-in-Docker trust too; no
    secrets. With some tens of them user_data gets longer than Nova takes; the preview says so."""
    proxy: Proxy | None = None
    """HTTP proxy for the machines' packages and their engine, the managers, the jobs and Docker-in-Docker."""
    prune: Annotated[Prune | None, BeforeValidator(_off), Field(json_schema_extra=_off_is_false)] = Prune()
    """When images and volumes that nobody uses are removed; false keeps everything."""
    updates: Updates | None = None
    """Unattended security updates; the image's own way when absent."""
    metrics_from: Cidrs = ()
    """CIDRs from which Prometheus may read metrics of the machines and of the managers, on port 9252; nobody serves any
    when empty."""
    metadata: Metadata = Field(default_factory=dict)
    """Nova metadata for the machines."""
    tags: CloudTags = ()
    """Tags for the machines, their ports and the security group."""
    ready_timeout: int = Field(900, ge=30)
    """Seconds to wait for a new machine to boot, install Docker and answer."""

    @property
    def keeps_floating_ip(self) -> bool:
        """Whether a floating IP outlives its machine, since SSH reaches both machines without it."""
        return self.floating_ip_pool is not None and self.ssh.address == "fixed"

    @model_validator(mode="after")
    def _address(self) -> Self:
        if self.ssh.address == "floating" and self.floating_ip_pool is None:
            raise ValueError("ssh.address is floating, which needs floatingIpPool")
        return self

    @model_validator(mode="after")
    def _one_service_a_port(self) -> Self:
        if self.metrics_from and self.ssh.port == METRICS_PORT:
            raise ValueError(f"ssh.port is {METRICS_PORT}, where metricsFrom has metrics served; leave one out")
        return self

    @model_validator(mode="after")
    def _zones(self) -> Self:
        if self.availability_zone is not None and self.availability_zones:
            raise ValueError("has both availabilityZone and availabilityZones; leave one out")
        return self


class DockerHost(_Model):
    """A Docker Engine that exists already."""

    kind: Literal["docker"]
    url: Annotated[str, AfterValidator(_docker_url)]
    """unix:///path, ssh://user@host[:port] or tcp://host:port."""
    host_key: PublicKey | None = None
    """Public SSH host key of an ssh:// URL; without it the key must be in your known_hosts."""
    ssh: Ssh = Ssh()
    """jumpHost, identityFile and options for an ssh:// URL; user and port stand in the URL."""
    cert_path: NonEmpty | None = None
    """Folder with ca.pem, cert.pem and key.pem for a tcp:// URL with TLS."""
    mtu: int | None = Field(None, ge=MINIMUM_MTU, le=MAXIMUM_MTU)
    """MTU in bytes for job networks and Docker-in-Docker; the engine's own when absent."""
    ipv6: Flag = False
    """Job networks and Docker-in-Docker have IPv6 addresses too. Needs Docker 28.0.1 or newer."""
    registry_mirrors: tuple[Mirror, ...] = ()
    """Mirrors of Docker Hub for Docker-in-Docker; the engine's own are in its daemon.json."""
    ca_certificates: tuple[Certificate, ...] = ()
    """Certificates of your own CAs, in PEM, which the managers and Docker-in-Docker trust too; no secrets."""
    proxy: Proxy | None = None
    """HTTP proxy for the managers, the jobs and Docker-in-Docker."""
    ready_timeout: int = Field(60, ge=5)
    """Seconds to wait for the engine to answer."""


class Limits(_Model):
    """What one container may use; all that the host has where nothing is said."""

    memory: Memory | None = None
    """Memory in bytes with Docker's units (powers of 1024): k, m or g, for instance 512m or 2g."""
    cpus: Cpus | None = None
    """Number of processors, also a part of one: 1.5."""


class AutoscalerPolicy(_Model):
    """How many workers wait for jobs, and when. Of those whose periods match, the last one counts."""

    periods: tuple[Annotated[str, Field(pattern=r"^\S+( \S+){4}$")], ...] = ("* * * * *",)
    """When it holds, in the format of cron: minute, hour, day of the month, month, day of the week."""
    timezone: Annotated[str, AfterValidator(_time_zone)] = "UTC"
    """Time zone of the periods."""
    idle_count: int = Field(0, ge=0)
    """Jobs for which room is kept ready on workers; with 0 the first job waits until a worker has booted."""
    idle_time: int = Field(1200, ge=0)
    """Seconds after which a worker that has nothing to do, and is not needed for idleCount, goes."""


class Autoscaler(_Model):
    """Workers: virtual machines that GitLab Runner makes and removes as jobs come and go, through the fleeting plugin
    for OpenStack. They are on the host's networks, with the host's Docker, MTU, mirrors, certificates and proxy."""

    plugin: Annotated[str, AfterValidator(_plugin)]
    """The plugin as an OCI image with its version: ghcr.io/sardinasystems/fleeting-plugin-openstack:<version>."""
    flavor: NonEmpty | None = None
    """Flavor of workers, by name or id; the host's when absent."""
    image: NonEmpty | None = None
    """Image of workers, by name or id; the host's when absent. One with Docker inside starts jobs sooner."""
    capacity_per_instance: int = Field(1, ge=1)
    """Jobs at once on one worker."""
    max_instances: int = Field(ge=1)
    """Workers at once, for each host that the runner lives on."""
    max_use_count: int = Field(1, ge=0)
    """Jobs that a worker takes before it is removed: with 1 no job finds anything of another; 0 is any number."""
    policies: tuple[AutoscalerPolicy, ...] = (AutoscalerPolicy(),)
    """How many workers are kept ready; a change is taken up without a restart. A change of anything else makes a new
    manager, and the old one ends its jobs first."""
    roles: tuple[NonEmpty, ...] = ("member",)
    """Roles in the project of the application credential by which the plugin makes workers; all of the user's when
    empty."""
    access_rules: Flag = True
    """Limit that credential to the API calls that the plugin makes; false for a cloud whose services know no access
    rules."""


class Runner(_Model):
    """One runner: where it belongs in GitLab, which jobs it takes and how they run."""

    project: int | None = Field(None, ge=1)
    """Id of the project it belongs to."""
    group: int | None = Field(None, ge=1)
    """Id of the group it belongs to."""
    instance: bool = False
    """An instance runner; needs an administrator's token."""
    token: Secret | None = None
    """Authentication token (glrt-…) of a runner that exists already, instead of project, group or instance."""
    description: Annotated[str, Field(max_length=MAXIMUM_TEXT_LENGTH)] = ""
    """Shown in GitLab; "<stack> <runner>" when empty."""
    tags: tuple[Tag, ...] = ()
    """Tags that select jobs."""
    run_untagged: bool = False
    """Also take jobs without tags."""
    locked: bool = True
    """A project runner stays with its project."""
    protected: bool = False
    """Only take jobs of protected branches and tags."""
    paused: bool = False
    """Take no new jobs."""
    maximum_timeout: int = Field(3600, ge=MINIMUM_TIMEOUT_SECONDS)
    """Longest time in seconds that a job may take on this runner."""
    maintenance_note: Annotated[str, Field(max_length=MAXIMUM_TEXT_LENGTH)] = ""
    """Note for administrators."""
    rotation: int | NonEmpty | None = None
    """Any number or text, a date for instance. Changing it rotates the token: a new registration takes over."""
    expiry_warning_days: int = Field(14, ge=0)
    """From how many days before its token expires on the preview warns; where GitLab's administrators let runner tokens
    expire."""
    executor: Literal["docker", "autoscaler"] = "docker"
    """Where jobs run: in Docker on the runner's own hosts, or in Docker on workers that come and go (GitLab Runner's
    docker-autoscaler)."""
    autoscaler: Autoscaler | None = None
    """The workers of `executor: autoscaler`."""
    hosts: tuple[HostReference, ...] = ()
    """Hosts that it lives on, by their numbers (`2`) or names (`<stack>-2`); all when empty. One registration, a
    manager on each."""
    limit: int | None = Field(None, ge=1)
    """Jobs at once on each host; `manager.concurrent` when absent."""
    image: NonEmpty = "debian:13-slim"
    """Image for jobs that name none."""
    pull_policies: tuple[PullPolicy, ...] = ()
    """How images are pulled, tried in this order; GitLab Runner's default (always) when empty."""
    builds: Literal["none", "rootless", "dind"] = "none"
    """How jobs build container images. none: not at all, or without `RUN`; rootless: nothing is privileged, but jobs
    may make namespaces; dind: a Docker-in-Docker service is privileged, with TLS and the certificate volume."""
    allowed_images: tuple[NonEmpty, ...] = ()
    """Images that jobs may name (`*` stands for anything but a slash, `**` for anything), besides `image`; every image
    when empty, which `rootless` does not allow."""
    allowed_services: tuple[NonEmpty, ...] = ()
    """Images of services that jobs may name, in the same way; every image when empty."""
    allowed_pull_policies: tuple[PullPolicy, ...] = ()
    """Pull policies that jobs may ask for; those of `pullPolicies` when empty."""
    services_limit: int | None = Field(None, ge=0)
    """Services that a job may have; any number when absent."""
    job_limits: Limits = Limits()
    """What a job's container may use."""
    service_limits: Limits = Limits()
    """What the container of each service may use."""
    no_new_privileges: bool = True
    """No program in a job's container gains privileges, as sudo and su do; false for images that need them. Never on
    with `rootless`, whose tools need newuidmap. Services are started as their images say."""
    volumes: tuple[Volume, ...] = ("/cache",)
    """Volumes of job containers, as in config.toml: paths in the container; volumes whose names start with `jobs.`; of
    the host, `/cache` and the folders right in `/srv` and `/mnt`, and with `:ro` its programs and CAs."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for every job."""
    registry_logins: dict[RegistryName, RegistryLogin] = Field(default_factory=dict)
    """Logins by which images of jobs and services are pulled, by what their names begin with: a registry (`docker.io`
    is Docker Hub), or a part of one. They are the variable DOCKER_AUTH_CONFIG of every job, which jobs can read."""
    advanced: RunnerKeys = Field(default_factory=dict)
    """Keys of config.toml below `[[runners]]` that have no setting here, by their names there; checked against those of
    GitLab Runner 19."""

    @model_validator(mode="after")
    def _one_scope(self) -> Self:
        scopes = [self.project is not None, self.group is not None, self.instance, self.token is not None]
        if sum(scopes) != 1:
            raise ValueError("needs exactly one of project, group, instance and token")
        if self.token is not None:
            for field in sorted(REGISTRATION_FIELDS & self.model_fields_set):
                raise ValueError(
                    f"{to_camel(field)} is kept by the registration; with a token of your own set it in GitLab"
                )
        elif not self.tags and not self.run_untagged:
            raise ValueError(
                "has no tags and takes no untagged jobs, so it would never get one; set tags or runUntagged"
            )
        return self

    @model_validator(mode="after")
    def _one_docker_auth_config(self) -> Self:
        if self.registry_logins and "DOCKER_AUTH_CONFIG" in self.environment:
            raise ValueError("has registryLogins and environment.DOCKER_AUTH_CONFIG; leave one out")
        return self

    @model_validator(mode="after")
    def _executor_fits(self) -> Self:
        if self.executor == "autoscaler" and self.autoscaler is None:
            raise ValueError("executor: autoscaler needs autoscaler, with plugin and maxInstances")
        if self.executor == "docker" and self.autoscaler is not None:
            raise ValueError("autoscaler is only there for executor: autoscaler")
        if self.autoscaler is not None and self.limit is not None:
            raise ValueError("limit follows from autoscaler.maxInstances and capacityPerInstance; leave it out")
        return self

    @model_validator(mode="after")
    def _builds_fit(self) -> Self:
        if self.builds == "rootless":
            # Such a pattern names no image.
            if not self.allowed_images or any(image.startswith("*") for image in self.allowed_images):
                raise ValueError(
                    "builds: rootless needs allowedImages that name the images which may build, for instance "
                    "quay.io/buildah/stable:*"
                )
            if self.no_new_privileges and "no_new_privileges" in self.model_fields_set:
                raise ValueError("noNewPrivileges is not possible with builds: rootless, whose tools need newuidmap")
        if (
            self.builds == "dind"
            and self.allowed_services
            and not any("dind" in each for each in self.allowed_services)
        ):
            raise ValueError("builds: dind needs Docker-in-Docker in allowedServices, for instance docker:*dind*")
        return self

    @model_validator(mode="after")
    def _pull_policies_fit(self) -> Self:
        if self.allowed_pull_policies:
            for policy in self.pull_policies or ("always",):
                if policy not in self.allowed_pull_policies:
                    default = "" if self.pull_policies else ", the default of pullPolicies,"
                    raise ValueError(f"allowedPullPolicies has no {policy}{default} so jobs could not pull by it")
        return self

    def registered_as(self, stack: str, name: str, *, shared: bool) -> str:
        """Its description in GitLab, by which the stack finds it again; `name` is its name in the stack, and `shared`
        says whether other stacks have it from the same layers."""
        if not self.description:
            return f"{stack} {name}"
        return f"{self.description} ({stack})" if shared else self.description

    def is_marked(self, *, shared: bool) -> bool:
        """Whether `registered_as` adds the stack's name: a description without it may be another stack's too."""
        return shared or not self.description

    @property
    def exposure(self) -> str | None:
        """Who else could use what jobs may do here, and what would be right; None when there is nothing to say."""
        if self.builds == "none":
            return None
        if self.token is not None:
            return "see in GitLab that this runner is locked to one project and protected: the stack does not keep it"
        wrong = []
        if self.scope != "project_type":
            wrong.append(f"takes jobs of every project of {'a group' if self.scope == 'group_type' else 'GitLab'}")
        elif not self.locked:
            wrong.append("is not locked to its project")
        if not self.protected:
            wrong.append("takes jobs of unprotected branches")
        if not wrong:
            return None
        return f"{' and '.join(wrong)}; better: project, locked: true and protected: true"

    @property
    def scope(self) -> Literal["project_type", "group_type", "instance_type"] | None:
        """GitLab's runner_type, or None when an existing token is used."""
        if self.project is not None:
            return "project_type"
        if self.group is not None:
            return "group_type"
        return "instance_type" if self.instance else None


class S3Cache(_Model):
    """A bucket that exists already, of anything that speaks S3."""

    kind: Literal["s3"]
    server: S3Server
    """The S3 API: a host and perhaps a port, s3.example.com:9000; for AWS s3.amazonaws.com."""
    bucket: NonEmpty
    """Name of the bucket."""
    region: NonEmpty = "us-east-1"
    """Region of the bucket."""
    access_key: Secret
    """Access key that may read, write and remove objects of the bucket."""
    secret_key: Secret
    """The secret that belongs to it."""
    insecure: bool = False
    """Speak HTTP instead of HTTPS."""
    path: str = ""
    """What the names of all objects start with."""
    shared: bool = False
    """Runners find each other's caches; else each runner has its own, on all hosts the same."""


class ObjectStoreCache(_Model):
    """A container in the cloud's own object store, made with an EC2 credential for it and removed with the stack."""

    kind: Literal["openstack"]
    server: S3Server | None = None
    """The S3 API: a host and perhaps a port; that of the object store in the cloud's catalogue when absent."""
    container: Annotated[str, Field(pattern=BUCKET, max_length=MAXIMUM_NAME_LENGTH)] | None = None
    """Name of the container; "<project>-<stack>-cache" when absent. Another one starts empty."""
    region: NonEmpty = "us-east-1"
    """Region for S3's signatures, which the cloud's S3 API expects; us-east-1 is Swift's default."""
    insecure: bool | None = None
    """Speak HTTP instead of HTTPS; as the catalogue says when absent."""
    path: str = ""
    """What the names of all objects start with."""
    shared: bool = False
    """Runners find each other's caches; else each runner has its own, on all hosts the same."""


class Manager(_Model):
    """The runner managers: the gitlab-runner containers."""

    image: NonEmpty = "gitlab/gitlab-runner"
    """Image of GitLab Runner, without a tag."""
    # The newest 19.4 patch release of GitLab Runner.
    version: NonEmpty = "v19.4.1"
    """Tag of the image, or a digest (sha256:…)."""
    concurrent: int = Field(4, ge=1)
    """Jobs at once in one manager (`concurrent` in config.toml)."""
    check_interval: int = Field(3, ge=1)
    """Seconds between two polls for jobs (`check_interval` in config.toml)."""
    log_level: Literal["debug", "info", "warn", "error", "fatal", "panic"] = "info"
    log_format: Literal["runner", "text", "json"] = "json"
    stop_grace: int | None = Field(None, ge=1)
    """Seconds that running jobs get before a manager is replaced or removed; the longest maximumTimeout when absent."""
    advanced: ManagerKeys = Field(default_factory=dict)
    """Keys of config.toml outside of `[[runners]]` that have no setting here, by their names there; checked against
    those of GitLab Runner 19."""

    @property
    def reference(self) -> str:
        """Image reference as Docker takes it."""
        return f"{self.image}@{self.version}" if self.version.startswith("sha256:") else f"{self.image}:{self.version}"


class Settings(_Model):
    """Everything that a stack says."""

    host: Annotated[OpenStackHost | DockerHost, Field(discriminator="kind")]
    runners: dict[Name, Runner] = Field(min_length=1)
    """Runners by name."""
    manager: Manager = Manager()
    cache: Annotated[S3Cache | ObjectStoreCache, Field(discriminator="kind")] | None = None
    """A distributed cache for the jobs of all runners, which outlives machines; each host's own when absent."""
    gitlab_url: Annotated[str, AfterValidator(_web_url)] | None = None
    """URL under which runners reach GitLab, when it is not the one that the provider uses (`gitlab:baseUrl`)."""
    protect: Flag = False
    """Refuse to remove or replace registrations, also by `pulumi destroy`, until this is false again."""

    @model_validator(mode="after")
    def _grace_covers_jobs(self) -> Self:
        longest = max(runner.maximum_timeout for runner in self.runners.values())
        if self.manager.stop_grace is not None and self.manager.stop_grace < longest:
            raise ValueError(
                f"manager.stopGrace: {self.manager.stop_grace}: is shorter than the longest maximumTimeout "
                f"({longest}), so an update would kill jobs"
            )
        return self

    @model_validator(mode="after")
    def _jobs_outlive_no_pruning(self) -> Self:
        prune = self.host.prune if isinstance(self.host, OpenStackHost) else None
        longest = max(runner.maximum_timeout for runner in self.runners.values())
        if prune is not None and prune.older_than_hours * 3600 < longest:
            raise ValueError(
                f"host.prune.olderThanHours: {prune.older_than_hours}: is shorter than the longest maximumTimeout "
                f"({longest} s), so containers of running jobs could go"
            )
        return self

    @model_validator(mode="after")
    def _workers_in_a_cloud(self) -> Self:
        for name, runner in self.runners.items():
            if runner.executor == "autoscaler" and not isinstance(self.host, OpenStackHost):
                raise ValueError(f"runners.{name}.executor: autoscaler: needs host.kind: openstack")
        return self

    @model_validator(mode="after")
    def _one_listen_address(self) -> Self:
        if (
            isinstance(self.host, OpenStackHost)
            and self.host.metrics_from
            and "listen_address" in self.manager.advanced
        ):
            raise ValueError("manager.advanced.listen_address: is set by the host's metricsFrom; leave it out")
        return self

    @model_validator(mode="after")
    def _one_cache(self) -> Self:
        if isinstance(self.cache, ObjectStoreCache) and not isinstance(self.host, OpenStackHost):
            raise ValueError("cache.kind: openstack needs host.kind: openstack; name a bucket with kind: s3")
        for name, runner in self.runners.items():
            # Without `cache` these belong to a cache of another kind.
            for key in ("Type", "Path", "Shared", "gcs", "azure") if self.cache is not None else ():
                if key in runner.advanced.get("cache", {}):
                    raise ValueError(f"runners.{name}.advanced.cache.{key}: is set by cache")
        return self

    @property
    def warnings(self) -> list[str]:
        """What is possible but not as safe as it could be, one line each."""
        return [
            f"gitlab-runners:runners.{name}: builds: {runner.builds}: {runner.exposure}"
            for name, runner in self.runners.items()
            if runner.exposure is not None
        ]

    @property
    def stop_grace_seconds(self) -> int:
        """Seconds that a manager gets to finish its jobs."""
        return self.manager.stop_grace or max(runner.maximum_timeout for runner in self.runners.values())

    @property
    def host_count(self) -> int:
        """Number of Docker hosts."""
        return self.host.count if isinstance(self.host, OpenStackHost) else 1
