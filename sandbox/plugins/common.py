"""What the stand-in plugins share: a provider that answers the engine from facts, habits and calls to a service."""

import asyncio
import json
import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from pulumi.provider.experimental import provider
from pulumi.provider.experimental.property_value import PropertyValue

from . import facts
from .difference import Change, Kind
from .facts import Habits
from .values import (
    UNKNOWN,
    Plain,
    contains_unknown,
    plain,
    plain_map,
    property_map,
    property_value,
    secret_names,
)

T = TypeVar("T")

# pulumi-terraform-bridge lists here the inputs that got their value from it and not from the program, so that it can
# give them the same value the next time. The stand-ins do likewise: the state fits the official plugin.
DEFAULTS_KEY = "__defaults"
# Inputs that the engine itself adds to those of a provider.
ENGINE_CONFIG = frozenset({"version", "pluginDownloadURL"})
AUTO_NAME_DIGITS = 7
# Parts of a URN before the name: urn:pulumi:<stack>, project, types.
_BEFORE_NAME = 3
AUTO_NAME_LENGTH = 255
# The engine starts as many operations at a time as --parallel says (4 a core by default), and each occupies a thread
# here, a container's drain for as long as its longest job.
THREADS = 64


class PluginError(Exception):
    """An error that is told to the person as it is."""


class PartialError(PluginError):
    """A resource exists but is not as it should be; the engine keeps its id and state and updates it next time."""

    def __init__(self, message: str, id: str, properties: Mapping[str, PropertyValue]) -> None:
        super().__init__(message)
        self.id = id
        self.properties = properties


class NamedCheckRequest(provider.CheckRequest):
    """A check request that carries what the stack's `pulumi:autonaming` configuration says about the name."""

    proposed_name: str = ""
    naming_disabled: bool = False


class Work:
    """One operation on a resource: how long it may take, and what of it must not be lost when it fails midway."""

    def __init__(self, seconds: float, cancelled: threading.Event) -> None:
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self.cancelled = cancelled
        self.id: str | None = None
        self.once: Plain = {}
        self.note = ""
        """Why it takes so long, for the message when it takes too long."""

    def made(self, id: str, **once: Any) -> None:
        """Say that the resource exists now, and give the outputs that no later read will tell."""
        self.id = id
        self.once = once

    def wait(self, what: str, look: Callable[[], T | None], first: float = 0.2, most: float = 2.0) -> T:
        """Call `look` until it gives something; pauses between calls grow from `first` to `most` seconds.

        Raises `PluginError` naming `what` when the operation's time is over or the update is cancelled.
        """
        pause = first
        while (found := look()) is None:
            if time.monotonic() + pause > self._end:
                why = f": {self.note}" if self.note else ""
                raise PluginError(f"timeout after {self._seconds:.0f} s while waiting for {what}{why}")
            if self.cancelled.wait(pause):
                raise PluginError(f"cancelled while waiting for {what}")
            pause = min(pause * 1.5, most)
        return found


class Resource(ABC):
    """One resource type. Inputs, outputs and states are plain values by Pulumi property name."""

    token: ClassVar[str]
    habits: ClassVar[Habits] = Habits()
    seconds: ClassVar[float] = 600
    """How long an operation may take where the program sets no custom timeout: the official provider's default."""
    unchangeable: ClassVar[bool] = False
    """The official provider has no update for it, and refuses even the one without changes that the engine asks for
    after a creation that broke off."""

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        """What else is wrong with the inputs, as (property, reason); values may be `UNKNOWN`."""
        return []

    @abstractmethod
    def create(self, wanted: Plain, work: Work) -> None:
        """Create it; call `work.made` as soon as the id is known. A read follows."""

    @abstractmethod
    def read(self, id: str, state: Plain) -> Plain | None:
        """What the service says of the resource, or None when it is gone. `state` is empty at an import."""

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        """Change in place what `changes` names, which is never nothing. A read follows."""
        return

    @abstractmethod
    def delete(self, id: str, state: Plain, work: Work) -> None:
        """Delete it; one that is gone already is no error."""


Function = Callable[[Plain], Plain]


class Plugin(provider.Provider, ABC):
    """A stand-in for an official provider plugin."""

    name: ClassVar[str]
    keeps_half_done: ClassVar[bool] = True
    """What becomes of a creation or update that fails midway.

    Providers on Terraform's SDK v2 have the engine keep what was asked for, with the error; the next update of such a
    resource then finds nothing to change and does nothing (pulumi-terraform-bridge, pkg/tfbridge/provider.go, Update).
    Those on the plugin framework keep nothing of it (pkg/pf/tfbridge/provider_create.go and provider_update.go).
    """

    def __init__(self) -> None:
        self.facts = facts.load(self.name)
        self.config: Plain = {}
        self._cancelled = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=self.name)
        self._resources = {resource.token: resource for resource in self.resources()}
        self._kinds = {token: Kind(token, self.facts, item.habits) for token, item in self._resources.items()}
        self._functions = self.functions()

    @abstractmethod
    def resources(self) -> list[Resource]:
        """The resource types this plugin manages."""

    def functions(self) -> Mapping[str, Function]:
        """The look-ups this plugin answers, by token."""
        return {}

    def connect(self) -> None:
        """Check `self.config`, and connect where the official provider connects when it is configured."""
        return

    @abstractmethod
    def explain(self, error: Exception) -> str | None:
        """The message of an error of the service or its SDK; None for one that is a fault of the plugin."""

    # The provider itself

    async def check_config(self, request: provider.CheckRequest) -> provider.CheckResponse:
        """Refuse what the provider does not know, and take what is missing from the environment."""
        inputs = dict(request.new_inputs)
        for name, fact in self.facts.config.items():
            value = next((os.environ[variable] for variable in fact.environment if os.environ.get(variable)), None)
            if name not in inputs and value is not None:
                inputs[name] = property_value(value)
        decoded = self._decode(inputs)
        # JSON texts are kept as Go writes them, as the bridge does: another spelling would be a change of the provider.
        inputs |= {
            name: property_value(go_json(decoded[name])).with_secret(value.contains_secret())
            for name, value in inputs.items()
            if not isinstance(decoded.get(name, ""), str) and not contains_unknown(decoded[name])
        }
        return provider.CheckResponse(inputs, _failures(self.facts.faults(self.facts.config, decoded)))

    async def configure(self, request: provider.ConfigureRequest) -> provider.ConfigureResponse:
        """Take the configuration over; says no to output values, which the SDK's PropertyValue cannot always read."""
        self.config = self._decode(request.args)
        await self._run(f"configuring the {self.name} provider", self.connect)
        return provider.ConfigureResponse(accept_secrets=True, supports_preview=True)

    def _decode(self, inputs: Mapping[str, PropertyValue]) -> Plain:
        """A provider's inputs; all but strings come as JSON texts."""
        decoded = {
            name: value
            for name, value in plain_map(inputs).items()
            if name not in ENGINE_CONFIG and not name.startswith("__")
        }
        for name, value in decoded.items():
            fact = self.facts.config.get(name)
            if fact is not None and fact.type != "string" and isinstance(value, str):
                try:
                    decoded[name] = json.loads(value.lower() if fact.type == "boolean" else value)
                except ValueError:
                    # Left as it is: the check says which type it should have.
                    continue
        return decoded

    async def cancel(self) -> None:
        """End what is being waited for."""
        self._cancelled.set()

    # Resources

    async def check(self, request: provider.CheckRequest) -> provider.CheckResponse:
        """Refuse unknown and wrong inputs; fill in defaults and the automatic name."""
        resource, kind = self._find(request.urn)
        given = {name: value for name, value in request.new_inputs.items() if name != DEFAULTS_KEY}
        wanted = plain_map(given)
        faults = self.facts.faults(kind.properties, wanted)
        faults += [(name, "is not an input") for name in wanted if name in kind.properties and not _input(kind, name)]
        faults += [
            (name, f"is not implemented by the stand-in for the official {self.name} plugin")
            for name, value in wanted.items()
            if name in kind.habits.refused and value is not False
        ]
        defaults = {name: value for name, value in kind.habits.defaults.items() if name not in wanted}
        if kind.habits.auto_name and "name" not in wanted:
            if isinstance(request, NamedCheckRequest) and request.naming_disabled:
                faults.append(("name", "is missing, and automatic naming is disabled in this stack"))
            else:
                defaults["name"] = _auto_name(request)
        faults += resource.check({**defaults, **wanted})
        inputs = {**given, **property_map(defaults), DEFAULTS_KEY: property_value(sorted(defaults))}
        return provider.CheckResponse(inputs, _failures(faults))

    async def diff(self, request: provider.DiffRequest) -> provider.DiffResponse:
        """What would change, and what of it replaces the resource."""
        _, kind = self._find(request.urn)
        inputs = plain_map(request.new_inputs)
        changes = kind.changes(plain_map(request.old_state), _wanted(inputs))
        replaces = [name for name, change in changes.items() if change.replace]
        # A name that the program chose would be taken while the old resource has it.
        named = kind.habits.auto_name and "name" in inputs and "name" not in inputs.get(DEFAULTS_KEY, ["name"])
        return provider.DiffResponse(
            changes=bool(changes),
            replaces=replaces,
            diffs=list(changes),
            detailed_diff={
                name: provider.PropertyDiff(_DIFF_KINDS[change.kind, change.replace], input_diff=True)
                for name, change in changes.items()
            },
            delete_before_replace=bool(replaces) and (named or kind.habits.delete_before_replace),
        )

    async def create(self, request: provider.CreateRequest) -> provider.CreateResponse:
        """Create a resource, or say what is known of it before."""
        resource, kind = self._find(request.urn)
        base = _kept(kind, _wanted(plain_map(request.properties)))
        secret = secret_names(request.properties)
        if request.preview:
            computed = {
                name: UNKNOWN for name, fact in kind.properties.items() if fact.computed and base.get(name) is None
            }
            return provider.CreateResponse("", _outputs(kind, {**computed, **base}, secret))
        work = Work(request.timeout or resource.seconds, self._cancelled)

        def create() -> Plain:
            resource.create(_wanted(plain_map(request.properties)), work)
            return self._settled(resource, kind, work.id or "", {**base, **work.once})

        outputs = await self._run(
            f"creating {_name(request.urn)} ({_token(request.urn)})",
            create,
            lambda: (work.id, _outputs(kind, {**base, **work.once}, secret)) if self.keeps_half_done else (None, {}),
        )
        return provider.CreateResponse(work.id, _outputs(kind, outputs, secret))

    async def update(self, request: provider.UpdateRequest) -> provider.UpdateResponse:
        """Change a resource in place, or say what it will be."""
        resource, kind = self._find(request.urn)
        old, wanted = plain_map(request.olds), _wanted(plain_map(request.news))
        base = {
            name: value for name, value in old.items() if name in kind.properties and kind.properties[name].computed
        }
        base |= _kept(kind, wanted)
        secret = secret_names(request.news) | secret_names({name: request.olds[name] for name in base if name in old})
        if request.preview:
            return provider.UpdateResponse(_outputs(kind, base, secret))
        changes = kind.changes(old, wanted)
        if not changes and not resource.unchangeable:
            return provider.UpdateResponse(request.olds)
        work = Work(request.timeout or resource.seconds, self._cancelled)

        def update() -> Plain:
            if resource.unchangeable:
                raise PluginError("doesn't support update")
            resource.update(request.resource_id, old, wanted, changes, work)
            return self._settled(resource, kind, request.resource_id, base)

        outputs = await self._run(
            f"updating {_name(request.urn)} ({_token(request.urn)})",
            update,
            lambda: (request.resource_id, _outputs(kind, base, secret)) if self.keeps_half_done else (None, {}),
        )
        return provider.UpdateResponse(_outputs(kind, outputs, secret))

    async def read(self, request: provider.ReadRequest) -> provider.ReadResponse:
        """Read a resource: with a state to refresh it, without one to import it."""
        resource, kind = self._find(request.urn)
        state = {name: value for name, value in plain_map(request.properties).items() if name in kind.properties}
        found = await self._run(
            f"reading {_name(request.urn)} ({_token(request.urn)})", lambda: resource.read(request.resource_id, state)
        )
        if found is None:
            return provider.ReadResponse("")
        importing = not state
        outputs = _overlaid(kind, dict(kind.habits.defaults) if importing else state, found, importing)
        if importing:
            inputs = {
                name: value
                for name, value in outputs.items()
                if _input(kind, name) and not kind.same(name, kind.habits.defaults.get(name), value)
            }
            given: dict[str, PropertyValue] = property_map({**inputs, DEFAULTS_KEY: []})
        else:
            given = {
                name: value
                if name not in kind.properties or kind.same(name, plain(value), outputs.get(name))
                else property_value(outputs.get(name)).with_secret(value.contains_secret())
                for name, value in request.inputs.items()
            }
        secret = secret_names(request.properties) | secret_names(request.inputs)
        return provider.ReadResponse(request.resource_id, _outputs(kind, outputs, secret), given)

    async def delete(self, request: provider.DeleteRequest) -> None:
        """Delete a resource."""
        resource, _ = self._find(request.urn)
        work = Work(request.timeout or resource.seconds, self._cancelled)
        await self._run(
            f"deleting {_name(request.urn)} ({_token(request.urn)})",
            lambda: resource.delete(request.resource_id, plain_map(request.properties), work),
        )

    # Functions

    async def invoke(self, request: provider.InvokeRequest) -> provider.InvokeResponse:
        """Answer a look-up."""
        function = self._functions.get(request.tok)
        if function is None:
            raise PluginError(
                f"the look-up {request.tok} is not implemented by the stand-in for the official {self.name} plugin"
            )
        arguments = plain_map(request.args)
        inputs, outputs = self.facts.functions[request.tok]
        if faults := self.facts.faults(inputs, arguments):
            return provider.InvokeResponse(failures=_failures(faults))
        found = await self._run(f"looking up {request.tok}", lambda: function(arguments))
        secret = {name for name, fact in outputs.items() if fact.secret} | secret_names(request.args)
        return provider.InvokeResponse(property_map({**arguments, **found}, secret))

    # How it is done

    def _find(self, urn: str) -> tuple[Resource, Kind]:
        token = _token(urn)
        if token not in self._resources:
            raise PluginError(f"{token} is not implemented by the stand-in for the official {self.name} plugin")
        return self._resources[token], self._kinds[token]

    def _settled(self, resource: Resource, kind: Kind, id: str, base: Plain) -> Plain:
        """The state after a change: what was asked for, and what the service says."""
        found = resource.read(id, base)
        if found is None:
            raise PluginError("it is gone again right after the change")
        return _overlaid(kind, base, found, importing=False)

    async def _run(
        self,
        what: str,
        function: Callable[[], T],
        partial: Callable[[], tuple[str | None, Mapping[str, PropertyValue]]] | None = None,
    ) -> T:
        """Run `function` in a thread; its errors name `what`, and keep what `partial` says exists."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except Exception as error:
            reason = str(error) if isinstance(error, PluginError) else self.explain(error)
            id, properties = partial() if partial is not None else (None, {})
            if reason is None and id is None:
                raise
            message = f"{what}: {reason if reason is not None else f'{type(error).__name__}: {error}'}"
            if id is not None:
                raise PartialError(message, id, properties) from error
            raise PluginError(message) from error


_DIFF_KINDS = {
    ("add", False): provider.PropertyDiffKind.ADD,
    ("add", True): provider.PropertyDiffKind.ADD_REPLACE,
    ("delete", False): provider.PropertyDiffKind.DELETE,
    ("delete", True): provider.PropertyDiffKind.DELETE_REPLACE,
    ("update", False): provider.PropertyDiffKind.UPDATE,
    ("update", True): provider.PropertyDiffKind.UPDATE_REPLACE,
}


def go_json(value: Any) -> str:
    """A value as Go's `json.Marshal` writes it: without spaces, and with &, < and > escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[&<>]", lambda found: f"\\u{ord(found[0]):04x}", text)


def innermost(error: BaseException) -> str:
    """What the network said, out of the errors that requests and urllib3 wrap around it."""
    inner = next((argument for argument in error.args if isinstance(argument, BaseException)), None)
    return str(error) if inner is None else innermost(inner)


def _token(urn: str) -> str:
    """A resource's own type; the URN has those of its parents as well."""
    return urn.split("::", _BEFORE_NAME)[2].rpartition("$")[2]


def _name(urn: str) -> str:
    """A resource's name, which may have "::" in it, as networks of IPv6 have. (The SDK takes its end alone.)"""
    return urn.split("::", _BEFORE_NAME)[_BEFORE_NAME]


def _input(kind: Kind, name: str) -> bool:
    return name in kind.properties and kind.properties[name].input


def _wanted(inputs: Plain) -> Plain:
    return {name: value for name, value in inputs.items() if not name.startswith("__")}


def _kept(kind: Kind, wanted: Plain) -> Plain:
    """Wanted inputs in the form that the state keeps."""
    return {
        name: value if contains_unknown(value) else kind.stored(name, value)
        for name, value in {**kind.habits.defaults, **wanted}.items()
    }


def _overlaid(kind: Kind, base: Plain, found: Plain, importing: bool) -> Plain:
    """A state brought up to date.

    What the program neither gave nor gets as an output is left out, as it is not the program's concern; what means the
    same as before stays as it was written (order of sets, members that the service fills in are taken over).
    """
    result = dict(base)
    for name, value in found.items():
        if not (importing or name in base or kind.properties[name].computed):
            continue
        if value is None:
            result.pop(name, None)
        elif name in kind.habits.filled_in or name not in base or not kind.same(name, base[name], value):
            result[name] = value
    return result


def _outputs(kind: Kind, values: Plain, secret: set[str]) -> dict[str, PropertyValue]:
    return property_map(values, secret | {name for name, fact in kind.properties.items() if fact.secret})


def _failures(faults: list[tuple[str, str]]) -> list[provider.CheckFailure]:
    return [provider.CheckFailure(path, reason) for path, reason in faults]


def _auto_name(request: provider.CheckRequest) -> str:
    """The name of old, or the logical name with a random suffix; or what the stack's naming configuration says."""
    old = plain_map(request.old_inputs)
    if "name" in old.get(DEFAULTS_KEY, ()):
        return str(old["name"])
    if isinstance(request, NamedCheckRequest) and request.proposed_name:
        return request.proposed_name
    # The engine's seed makes the name the same in preview and update; it protects nothing.
    digits = random.Random(request.random_seed or None).choices("0123456789abcdef", k=AUTO_NAME_DIGITS)
    return f"{_name(request.urn)[: AUTO_NAME_LENGTH - AUTO_NAME_DIGITS - 1]}-{''.join(digits)}"
