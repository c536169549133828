"""What a plan means: what each resource is called, what becomes of running jobs, and what to look at first.

The rules are those of docs/explanation/updates.md: managers and machines that go are drained first, configuration and
registrations change in place. What a plan shows beside these rules could reach a running job.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from ipaddress import ip_network
from typing import Any

from review.files import FileChange
from review.plan import OPERATIONS, UNKNOWN, Change, Operation, Plan
from settings import OpenStackHost, Settings

CONFIGURATION_SUFFIX = "-config"
# Nova changes these of a server that runs by a rebuild, which wipes the disk, or a resize, which reboots.
_WIPES = {"imageId", "imageName", "blockDevices", "userData", "personalities"}
# Keys of `host` whose change leaves the machines alone; of `ssh` only the user is on the machine.
_SAME_MACHINE = {"count", "antiAffinity", "sshFrom", "tags", "metadata", "readyTimeout", "floatingIpPool"}
_REBOOTS = {"flavorId", "flavorName", "powerState"}


class Jobs(IntEnum):
    """What running jobs notice."""

    NOTHING = 0
    FINISH_FIRST = 1
    MAY_DIE = 2


@dataclass(frozen=True)
class Name:
    """What a resource is to a person: its kind in words, and which one; `which` is not trusted."""

    kind: str
    which: str


@dataclass(frozen=True)
class Warning_:
    """Something to look at first: words of the program's own, and what they are about, which is not trusted."""

    text: str
    subject: str


@dataclass(frozen=True)
class StackReview:
    """One stack's part of the comment.

    `error` is why there is no preview. The settings are None where the stack did not exist, does not any more, or
    cannot be read. `files` are those that the settings become.
    """

    stack: str
    plan: Plan = field(default_factory=Plan)
    error: str | None = None
    before: Settings | None = None
    after: Settings | None = None
    files: Sequence[FileChange] = ()

    @property
    def failure(self) -> str | None:
        """Why the preview failed, in a line; None when it did not."""
        refusals = (f"policy {each.policy}: {each.message}" for each in self.plan.refusals)
        return self.error or next(iter([*self.plan.errors, *refusals]), None)

    @property
    def is_unchanged(self) -> bool:
        """Whether the preview found nothing to do."""
        return self.failure is None and not self.plan.changes

    @cached_property
    def counts(self) -> dict[Operation, int]:
        """How many resources each operation concerns."""
        return {each: sum(change.operation == each for change in self.plan.changes) for each in OPERATIONS}

    @cached_property
    def jobs(self) -> tuple[Jobs, str]:
        """What running jobs notice, and why: words of the program's own with the names of machines and managers."""
        risks: list[str] = []
        drained: list[Change] = []
        for change in self.plan.changes:
            risk = self._risk(change)
            if risk is not None:
                risks.append(risk)
            elif change.operation in ("replace", "delete") and _waits(change):
                drained.append(change)
        if risks:
            return Jobs.MAY_DIE, "; ".join(dict.fromkeys(risks))
        if drained:
            return Jobs.FINISH_FIRST, f"at most {duration(max(map(_grace, drained)))}"
        return Jobs.NOTHING, ""

    def _risk(self, change: Change) -> str | None:
        """Why a change could end running jobs."""
        goes = change.operation in ("replace", "delete")
        risk = None
        match change.type:
            case "Instance" if goes and not self._goes("Drain", change.name):
                risk = f"machine {change.name} goes without a drain"
            case "Instance" if change.operation == "update" and _changed_keys(change) & (_WIPES | _REBOOTS):
                risk = (
                    f"machine {change.name} is {'rebuilt' if _changed_keys(change) & _WIPES else 'restarted'} in place"
                )
            case "Container" if (
                goes and not is_configuration(change) and not self._goes("Instance", machine_of(change))
            ):
                # With its machine it goes without a call to Docker: the drain has been there before.
                if not _grace(change) or change.old.get("stopSignal") != "SIGQUIT":
                    risk = f"manager {change.name} is stopped at once"
            case "UserRunner" if goes and not self._goes("JobsEnded", change.name):
                risk = f"registration {change.name} goes without waiting for its jobs"
        return risk

    def _goes(self, type_: str, name: str | None) -> bool:
        return any(
            change.type == type_ and change.name == name and change.operation in ("replace", "delete")
            for change in self.plan.changes
        )

    @cached_property
    def warnings(self) -> list[Warning_]:
        """What a reviewer should see first."""
        return list(self._warnings())

    def _warnings(self) -> Iterator[Warning_]:
        if self.failure is not None:
            return
        if self.plan.changes and self._is_protected:
            yield Warning_("this stack is protected (`protect: true`)", "")
        for change in self.plan.changes:
            yield from self._of_change(change, self._other_machine)
        yield from self._of_builds()
        yield from self._of_access()

    @property
    def _is_protected(self) -> bool:
        stated = any(settings is not None and settings.protect for settings in (self.before, self.after))
        return stated or any(change.protected for change in self.plan.changes)

    @cached_property
    def _other_machine(self) -> str:
        """The keys of `host` that make it another machine, as far as the stack's files tell."""
        if self.before is None or self.after is None:
            return ""
        old, new = (settings.host.model_dump(by_alias=True) for settings in (self.before, self.after))
        keys = [f"host.{key}" for key in new if key not in _SAME_MACHINE and old.get(key) != new[key]]
        return f" ({', '.join(keys)})" if keys else ""

    @staticmethod
    def _of_change(change: Change, because: str) -> Iterator[Warning_]:
        match change.type, change.operation:
            case "Instance", "replace":
                yield Warning_(
                    "a virtual machine is replaced, with its caches and its address", f"{change.name}{because}"
                )
            case "Instance", "delete":
                yield Warning_("a virtual machine is removed", change.name)
            case "Instance", "update":
                keys = _changed_keys(change)
                if keys & _WIPES:
                    yield Warning_("a virtual machine is rebuilt in place: its disk is wiped", change.name)
                elif keys & _REBOOTS:
                    yield Warning_("a virtual machine is restarted in place", change.name)
            case "UserRunner", "delete":
                yield Warning_("a registration is removed: the runner is gone from GitLab", change.name)
            case "UserRunner", "replace":
                yield Warning_("a registration is replaced: the runner gets a new token and id", change.name)

    def _of_builds(self) -> Iterator[Warning_]:
        for name, runner in self.after.runners.items() if self.after is not None else ():
            before = self.before.runners.get(name) if self.before is not None else None
            is_new = any(
                (change.type, change.operation, change.name) == ("UserRunner", "create", f"{self.stack}-{name}")
                for change in self.plan.changes
            )
            if runner.builds == "dind" and (before is None or before.builds != "dind" or is_new):
                yield Warning_("privileged builds are added, and who breaks out of one has the host", f"{name}: dind")

    def _of_access(self) -> Iterator[Warning_]:
        rules = [change for change in self.plan.changes if change.type == "SecGroupRule"]
        if any(change.type == "SecGroup" and change.operation == "create" for change in self.plan.changes):
            return
        host = self.before.host if self.before is not None else None
        allowed: dict[str, set[str]] = {"SSH": set(), "metrics": set()}
        if isinstance(host, OpenStackHost):
            allowed = {"SSH": set(host.ssh_from), "metrics": set(host.metrics_from)}
        for change in rules:
            if change.old.get("remoteIpPrefix"):
                allowed[_service(change)].add(str(change.old["remoteIpPrefix"]))
        for change in rules:
            opened, service = change.new.get("remoteIpPrefix"), _service(change)
            if change.operation == "delete" or change.new.get("direction") != "ingress" or opened == UNKNOWN:
                continue
            if not opened or not any(_within(str(opened), network) for network in allowed[service]):
                shown = service if service == "SSH" else f"reading {service}"
                yield Warning_(f"{shown} is opened to more addresses", str(opened or "everywhere"))


def _service(rule: Change) -> str:
    """What a rule lets in, from its name."""
    return "metrics" if "-metrics-" in rule.name else "SSH"


def _within(inner: str, outer: str) -> bool:
    try:
        small, large = ip_network(inner), ip_network(outer)
    except ValueError:
        return False
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]


def _changed_keys(change: Change) -> set[str]:
    return {each.path.partition(".")[0].partition("[")[0] for each in change.properties}


def _waits(change: Change) -> bool:
    """Whether jobs can be what the removal of this resource waits for."""
    return change.type in ("Drain", "JobsEnded") or (change.type == "Container" and not is_configuration(change))


def _grace(change: Change) -> int:
    """Seconds that jobs get: what was declared before counts, not what comes."""
    grace = change.old.get("destroyGraceSeconds" if change.type == "Container" else "grace")
    return int(grace) if isinstance(grace, int | float) else 0


def is_configuration(change: Change) -> bool:
    """Whether a container is the one that only carries a manager's configuration."""
    return change.type == "Container" and (change.new or change.old).get("start") is False


def runner_of(change: Change) -> str | None:
    """The runner to which a container or volume belongs, as its labels say."""
    return _label(change, "gitlab-runners.runner")


def machine_of(change: Change) -> str | None:
    """The host on which a container or volume is, from its name."""
    runner = runner_of(change)
    name = change.name.removesuffix(CONFIGURATION_SUFFIX) if is_configuration(change) else change.name
    return name.removesuffix(f"-{runner}") if runner is not None else None


def _label(change: Change, key: str) -> str | None:
    for inputs in (change.new, change.old):
        for label in inputs.get("labels") or ():
            if isinstance(label, Mapping) and label.get("label") == key:
                return str(label.get("value"))
    return None


def duration(seconds: int) -> str:
    """Seconds in words: 90 min, 2 h."""
    if seconds and seconds % 3600 == 0:
        return f"{seconds // 3600} h"
    return f"{-(-seconds // 60)} min"


def _rule(change: Change) -> Name:
    rule: Mapping[str, Any] = change.new or change.old
    if rule.get("direction") == "ingress":
        return Name(f"security group rule: {_service(change)} from", str(rule.get("remoteIpPrefix") or "everywhere"))
    return Name("security group rule: outgoing", str(rule.get("ethertype", "")))


def _container(change: Change) -> Name:
    if is_configuration(change):
        return Name("configuration of the runner manager", change.name.removesuffix(CONFIGURATION_SUFFIX))
    return Name("runner manager", change.name)


def _named(kind: str) -> Callable[[Change], Name]:
    return lambda change: Name(kind, change.name)


NAMES: Mapping[str, Callable[[Change], Name]] = {
    "Instance": _named("virtual machine"),
    "Port": _named("network port"),
    "FloatingIp": _named("floating IP of"),
    "FloatingIpAssociate": _named("attachment of the floating IP to"),
    "SecGroup": _named("security group"),
    "SecGroupRule": _rule,
    "DeclaredRules": _named("set of rules of the security group"),
    "Keypair": _named("key pair"),
    "ServerGroup": _named("server group"),
    "HostKey": _named("SSH host key of"),
    "Drain": _named("drain of"),
    "Handover": _named("handover of the jobs' slots on"),
    "docker provider": _named("connection to Docker on"),
    "gitlab provider": _named("connection to GitLab of"),
    "openstack provider": _named("connection to OpenStack of"),
    "RemoteImage": _named("image of the runner manager"),
    "Volume": _named("volume of the runner manager"),
    "blockstorage.Volume": _named("volume for Docker's data on"),
    "objectstorage.Container": _named("bucket of the cache"),
    "Ec2CredentialV3": _named("credentials of the cache"),
    "Container": _container,
    "UserRunner": _named("registration in GitLab"),
    "JobsEnded": _named("wait for the jobs of"),
}


def name_of(change: Change) -> Name:
    """What a person calls the resource of a change."""
    if change.type in NAMES:
        return NAMES[change.type](change)
    return Name("resource", f"{change.type} {change.name}")


# What the creation of a resource should tell; all else follows from it or from defaults.
_TELLING: Mapping[str, Sequence[str]] = {
    "Instance": ("flavorId", "imageId", "keyPair", "availabilityZone", "metadata", "tags"),
    "UserRunner": (
        "runnerType",
        "projectId",
        "groupId",
        "tagLists",
        "untagged",
        "accessLevel",
        "locked",
        "maximumTimeout",
    ),
    "FloatingIp": ("pool",),
    "SecGroupRule": ("portRangeMin",),
    "Keypair": ("publicKey",),
    "ServerGroup": ("policies",),
    "RemoteImage": ("name",),
}


def telling(change: Change) -> list[tuple[str, Any]]:
    """Properties of a new resource that are worth a look."""
    keys = _TELLING.get(change.type, ())
    return [(key, change.new[key]) for key in keys if change.new.get(key) not in (None, "", [], {})]
