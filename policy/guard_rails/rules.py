"""The policies, as pure functions: no Pulumi import.

Each looks at one resource at a time, before it is made or changed. Pulumi's properties raise an error where a preview
does not know a value yet: then Pulumi warns that the policy could not be asked, and asks it again during the update.
"""

import gzip
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Literal
from uuid import UUID

import yaml

Level = Literal["advisory", "mandatory", "disabled"]
Properties = Mapping[str, Any]
Options = Mapping[str, Any]
Check = Callable[[Properties, Options], Iterator[str]]

# Resource types; the last four are the program's own components.
INSTANCE = "openstack:compute/instance:Instance"
SECURITY_GROUP_RULE = "openstack:networking/secGroupRule:SecGroupRule"
REMOTE_IMAGE = "docker:index/remoteImage:RemoteImage"
USER_RUNNER = "gitlab:index/userRunner:UserRunner"
REGISTRATION = "gitlab-runners:gitlab:Registration"
VIRTUAL_MACHINE = "gitlab-runners:openstack:VirtualMachine"
WORKER_GROUP = "gitlab-runners:openstack:WorkerGroup"
FLEET = "gitlab-runners:index:Fleet"

# What nobody on the internet has as an address (RFC 1918, RFC 6598, RFC 4193, loopback).
_NOT_PUBLIC = [
    ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1/128")
]
# The program names a machine `<stack>-<number>`.
_MACHINE_NAME = re.compile(r".+-(\d+)")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
# v19.4.1, alpine-v19.4.1, 3.12.1-slim; a hash, of a commit for instance; a day.
_EXACT_TAG = re.compile(r"(.*-)?v?\d+\.\d+\.\d+([-.+_].*)?|[0-9a-f]{12,64}|(.*-)?20\d{6}(-.*)?")
_HOST_KEY = re.compile(r"(rsa|dsa|ecdsa|ed25519)_private")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_SECRETS = {
    # The prefixes of GitLab's tokens (GitLab docs, "Token overview").
    "a token of GitLab": re.compile(
        r"\bgl(pat|rt|rtr|dt|oas|soat|ptt|cbt|imt|ft|agent|ffct)-[\w.-]{16,}|\bGR1348941[\w-]{16,}"
    ),
    "a token of GitHub": re.compile(r"\bgh[pousr]_\w{36}|\bgithub_pat_\w{22,}"),
    "an access key of AWS": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a password in a URL": re.compile(r"://[^/\s:@]+:[^/\s:@]+@"),
}
_GZIP = b"\x1f\x8b"
UNKNOWN_SCOPE = "unknown"
_RUNNERS = {
    "instance_type": "an instance runner",
    "group_type": "a group runner",
    "project_type": "a project runner",
    UNKNOWN_SCOPE: "a runner with a token of its own, of any scope,",
}


@dataclass(frozen=True)
class Rule:
    """A policy. `rule` says what must hold, `reason` why, `fix` what to do where it does not.

    `types` are the resources that it looks at; `options` are what a configuration may say besides the level, as
    properties of a JSON Schema with defaults. `check` yields what is wrong with a resource's inputs, in a line each
    and without a secret.
    """

    name: str
    rule: str
    reason: str
    fix: str
    level: Level
    types: tuple[str, ...]
    check: Check
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def violations(self, type_: str, properties: Properties, options: Options | None = None) -> list[str]:
        """What is wrong with a resource of this type, each with what to do; `options` are laid over the defaults."""
        if type_ not in self.types:
            return []
        defaults = {name: schema["default"] for name, schema in self.options.items()}
        return [f"{found}. {self.fix}" for found in self.check(properties, {**defaults, **(options or {})})]


def _wide_ingress(rule: Properties, options: Options) -> Iterator[str]:
    if rule.get("direction") != "ingress" or rule.get("remoteGroupId") or rule.get("remoteAddressGroupId"):
        return
    range_ = [str(int(rule[key])) for key in ("portRangeMin", "portRangeMax") if rule.get(key)]
    ports = "-".join(dict.fromkeys(range_))
    what = f"port {ports}" if ports else "every port"
    prefix = rule.get("remoteIpPrefix")
    if not prefix:
        yield f"{what} is open to everybody"
        return
    network = ip_network(prefix, strict=False)
    least = int(options["ipv6PrefixLength" if ":" in prefix else "ipv4PrefixLength"])
    if network.prefixlen < least and not _is_private(network):
        yield f"{what} is open to {prefix}, which is wider than /{least}"


def _is_private(network: IPv4Network | IPv6Network) -> bool:
    return any(network.network_address in private and network.prefixlen >= private.prefixlen for private in _NOT_PUBLIC)


def _privileged_builds(registration: Properties, options: Options) -> Iterator[str]:
    scope = registration.get("scope", UNKNOWN_SCOPE)
    if registration.get("builds") == "dind" and scope in options["scopes"]:
        yield f"{_RUNNERS[scope]} has privileged builds (builds: dind)"


def _locked_and_protected(runner: Properties, options: Options) -> Iterator[str]:
    if "builds" in runner:
        # A registration; what GitLab keeps of one of the stack's own is in its UserRunner.
        if "scope" not in runner:
            yield "the runner has a token of its own, so nobody sees here whether it is locked and protected"
        return
    if runner.get("runnerType") == "project_type" and runner.get("locked") is False:
        yield "the runner is not locked to its project"
    if runner.get("accessLevel", "ref_protected") != "ref_protected":
        yield "the runner takes jobs of unprotected branches"


def _runner_version(image: Properties, options: Options) -> Iterator[str]:
    yield from _moving(image.get("name"))


def _job_image(registration: Properties, options: Options) -> Iterator[str]:
    yield from _moving(registration.get("image"))


def _moving(reference: str | None) -> Iterator[str]:
    if reference is None or _DIGEST.search(reference):
        return
    # A port of a registry is no tag.
    _, _, tag = reference.rpartition("/")[2].partition(":")
    if not _EXACT_TAG.fullmatch(tag):
        yield f"{reference} can be another image tomorrow"


def _flavor(machine: Properties, options: Options) -> Iterator[str]:
    flavor, allowed = machine.get("flavor"), options["flavors"]
    if flavor is not None and allowed and flavor not in allowed:
        yield f"flavor {flavor} is none of {', '.join(allowed)}"


def _image(machine: Properties, options: Options) -> Iterator[str]:
    image, allowed = machine.get("image"), options["images"]
    if image is not None and allowed and image not in allowed:
        yield f"image {image} is none of {', '.join(allowed)}"


def _plugin(workers: Properties, options: Options) -> Iterator[str]:
    plugin, allowed = workers.get("plugin"), options["plugins"]
    if plugin is not None and allowed and not {plugin, plugin.rpartition(":")[0]} & set(allowed):
        yield f"plugin {plugin} is none of {', '.join(allowed)}"


def _machines_at_once(fleet: Properties, options: Options) -> Iterator[str]:
    hosts, workers = int(fleet.get("hosts") or 0), int(fleet.get("workers") or 0)
    most = int(options["teams"].get(fleet.get("team"), options["maximum"]))
    if hosts + workers > most:
        yield f"there may be {hosts} hosts and {workers} workers at once, and {most} machines are the most"


def _host_number(machine: Properties, options: Options) -> Iterator[str]:
    team = (machine.get("metadata") or {}).get("team")
    most = int(options["teams"].get(team, options["maximum"]))
    named = _MACHINE_NAME.fullmatch(machine.get("name") or "")
    if named and int(named[1]) > most:
        yield f"this is machine {int(named[1])} of the stack, and {most} is the most"


def _tagged(machine: Properties, options: Options) -> Iterator[str]:
    missing = [key for key in options["keys"] if not (machine.get("metadata") or {}).get(key)]
    if missing:
        yield f"the machine's metadata lacks {', '.join(missing)}"


def _boot_image(machine: Properties, options: Options) -> Iterator[str]:
    image = machine.get("image")
    if image is None:
        return
    try:
        UUID(image)
    except ValueError:
        yield f"image {image} is a name, which can be that of another image tomorrow"


def _secret_in_user_data(machine: Properties, options: Options) -> Iterator[str]:
    text = _plain(machine.get("userData") or "")
    # Never the secret itself, nor what stands around it.
    yield from (f"user_data holds {kind}" for kind, pattern in _SECRETS.items() if pattern.search(text))
    if _PRIVATE_KEY.search(_without_host_keys(text)):
        yield "user_data holds a private key"


def _plain(user_data: str) -> str:
    """What cloud-init reads, which may be sent compressed and in base64."""
    try:
        data = b64decode(user_data, validate=True)
    except ValueError:
        return user_data
    return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode(errors="replace")


def _without_host_keys(user_data: str) -> str:
    """cloud-config without the machine's private SSH host keys, which must be there; any other text as it is."""
    try:
        config = yaml.safe_load(user_data)
    except yaml.YAMLError:
        return user_data
    if not isinstance(config, dict) or not isinstance(config.get("ssh_keys"), dict):
        return user_data
    keys = {name: key for name, key in config["ssh_keys"].items() if not _HOST_KEY.fullmatch(str(name))}
    return yaml.safe_dump(config | {"ssh_keys": keys}, width=1 << 30)


RULES: tuple[Rule, ...] = (
    Rule(
        name="no-ssh-from-anywhere",
        rule="Only known networks get at the machines",
        reason="What the internet can reach is attacked without a pause, and any port can be that of sshd",
        fix="Name in host.sshFrom and host.metricsFrom the networks from which somebody must get there",
        level="mandatory",
        types=(SECURITY_GROUP_RULE,),
        check=_wide_ingress,
        options={
            "ipv4PrefixLength": {
                "type": "integer",
                "minimum": 1,
                "maximum": 32,
                "default": 16,
                "description": "The widest IPv4 network of the internet that may be let in.",
            },
            "ipv6PrefixLength": {
                "type": "integer",
                "minimum": 1,
                "maximum": 128,
                "default": 32,
                "description": "The widest IPv6 network.",
            },
        },
    ),
    Rule(
        name="no-privileged-builds-on-shared-runner",
        rule="No runner that many projects share has privileged builds",
        reason="A privileged job can take over its machine, and with it the jobs and secrets of everybody else there",
        fix="Give the runner a project of its own, or builds: rootless",
        level="mandatory",
        types=(REGISTRATION,),
        check=_privileged_builds,
        options={
            "scopes": {
                "type": "array",
                "items": {"enum": list(_RUNNERS)},
                "default": ["instance_type", UNKNOWN_SCOPE],
                "description": "Which runners; `unknown` are those with a token of their own.",
            }
        },
    ),
    Rule(
        name="runner-locked-and-protected",
        rule="Runners stay with their project and take only jobs of protected branches and tags",
        reason="Everybody who can push a branch can run what they like where production's secrets and networks are",
        fix="Set locked: true and protected: true",
        level="advisory",
        types=(USER_RUNNER, REGISTRATION),
        check=_locked_and_protected,
    ),
    Rule(
        name="runner-version-pinned",
        rule="The image of GitLab Runner has an exact version or a digest",
        reason="A tag that moves makes two machines of one stack different, and an update nobody has looked at",
        fix="Set manager.version to a whole version such as v19.4.1, or to a digest",
        level="mandatory",
        types=(REMOTE_IMAGE,),
        check=_runner_version,
    ),
    Rule(
        name="job-image-pinned",
        rule="The image of jobs that name none has an exact version or a digest",
        reason="A job that ran yesterday runs today with other tools, and nobody changed anything",
        fix="Set the runner's image to a whole version, a dated tag or a digest",
        level="advisory",
        types=(REGISTRATION,),
        check=_job_image,
    ),
    Rule(
        name="flavor-allowed",
        rule="Machines have a flavor of the list",
        reason="A machine of the wrong size is paid for every hour, and some flavors are somebody else's",
        fix="Choose one of these for host.flavor, and for the runner's autoscaler.flavor",
        level="mandatory",
        types=(VIRTUAL_MACHINE, WORKER_GROUP),
        check=_flavor,
        options={
            "flavors": {
                "type": "array",
                "items": {"type": "string"},
                "default": [],
                "description": "Flavors as stack files name them, by name or id; every flavor when empty.",
            }
        },
    ),
    Rule(
        name="image-allowed",
        rule="Machines boot from an image of the list",
        reason="An image that nobody looks after has old programs, or somebody else's",
        fix="Choose one of these for host.image, and for the runner's autoscaler.image",
        level="mandatory",
        types=(VIRTUAL_MACHINE, WORKER_GROUP),
        check=_image,
        options={
            "images": {
                "type": "array",
                "items": {"type": "string"},
                "default": [],
                "description": "Images as stack files name them, by name or id; every image when empty.",
            }
        },
    ),
    Rule(
        name="plugin-allowed",
        rule="Workers are made by a plugin of the list",
        reason="The plugin runs beside the managers, with a login for the cloud and the workers' key",
        fix="Choose one of these for the runner's autoscaler.plugin",
        level="mandatory",
        types=(WORKER_GROUP,),
        check=_plugin,
        options={
            "plugins": {
                "type": "array",
                "items": {"type": "string"},
                "default": [],
                "description": "Plugins as images, with a version, or without for every version; any when empty.",
            }
        },
    ),
    Rule(
        name="machine-cap",
        rule="A team has no more machines at once in an environment, workers too, than its share",
        reason="One stack with a typing error in maxInstances takes the quota of all the others",
        fix="Lower the runners' autoscaler.maxInstances, host.count, or on how many hosts a runner with workers lives",
        level="mandatory",
        types=(FLEET,),
        check=_machines_at_once,
        options={
            "maximum": {
                "type": "integer",
                "minimum": 0,
                "default": 20,
                "description": "Hosts, and the workers that each of their managers may have, together.",
            },
            "teams": {
                "type": "object",
                "additionalProperties": {"type": "integer", "minimum": 0},
                "default": {},
                "description": "Other maxima, by team.",
            },
        },
    ),
    Rule(
        name="host-cap",
        rule="A team has no more machines in an environment than its share",
        reason="One stack with a typing error in host.count takes the quota of all the others",
        fix="Lower host.count",
        level="mandatory",
        types=(INSTANCE,),
        check=_host_number,
        options={
            "maximum": {
                "type": "integer",
                "minimum": 0,
                "default": 4,
                "description": "Machines of one stack, which is a team's in one environment.",
            },
            "teams": {
                "type": "object",
                "additionalProperties": {"type": "integer", "minimum": 0},
                "default": {},
                "description": "Other maxima, by team.",
            },
        },
    ),
    Rule(
        name="machine-tagged",
        rule="Every machine says whose it is",
        reason="A machine without an owner is neither billed nor removed",
        fix="Call the stack `<team>-<environment>`, whose machines name both, or set host.metadata",
        level="mandatory",
        types=(INSTANCE, WORKER_GROUP),
        check=_tagged,
        options={
            "keys": {
                "type": "array",
                "items": {"type": "string"},
                "default": ["team", "environment"],
                "description": "What the machine's metadata must have.",
            }
        },
    ),
    Rule(
        name="no-secret-in-user-data",
        rule="user_data must hold no token, password or private key but the machine's own SSH host key",
        reason="Everybody who may look at the server in OpenStack reads it, and so may a job that finds a way there",
        fix="Take it out, and consider it as known: change it",
        level="mandatory",
        types=(INSTANCE,),
        check=_secret_in_user_data,
    ),
    Rule(
        name="boot-image-by-id",
        rule="The image that machines boot from is given by its id",
        reason="A name that moves to a newer image replaces all machines, at a time that nobody has chosen",
        fix="Set host.image, and the runner's autoscaler.image, to the id that `openstack image show` prints",
        level="advisory",
        types=(VIRTUAL_MACHINE, WORKER_GROUP),
        check=_boot_image,
    ),
)
