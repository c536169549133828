"""Base of the resources whose provider is the program itself: what is stored of a provider, and what makes a change.

Pulumi stores the provider of each such resource in the stack's state, as a pickle. It is loaded again for as long as
the resource lives, by any later version of this program under any Python: so it names nothing but `provider` below and
the kind of the resource. Its bytes decide nothing.
"""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from pulumi.dynamic import DiffResult, ReadResult, ResourceProvider, UpdateResult

# Where the provider of each kind of resource is now. States hold the kinds: a class may move, its kind stays.
_PROVIDERS = {
    "docker:Drain": "components.drain:_DrainProvider",
    "docker:Handover": "components.handover:_HandoverProvider",
    "gitlab:JobsEnded": "components.jobs_ended:_JobsEndedProvider",
    "openstack:DeclaredRules": "components.declared_rules:_DeclaredRulesProvider",
    "openstack:Workers": "components.workers:_WorkersProvider",
    "ssh:HostKey": "components.host_key:_HostKeyProvider",
}

# Reads that no diff has followed yet, by the resource's id: the engine starts this process anew for each command.
_reads: Counter[str] = Counter()


def provider(kind: str) -> "Provider":
    """The provider of a kind of resource. States name this function: it stays in this module, under this name."""
    module, _, name = _PROVIDERS[kind].partition(":")
    found: Provider = getattr(import_module(module), name)()
    return found


class Provider(ResourceProvider):
    """A provider that compares what the program declares with what was declared, and nothing else."""

    found: ClassVar[frozenset[str]] = frozenset()
    """Properties that nobody declares: the provider finds or makes them, and an update keeps them."""
    replacing: ClassVar[frozenset[str]] = frozenset()
    """Declared properties whose change is another thing, so that the resource is replaced."""

    def __reduce__(self) -> tuple[Callable[[str], "Provider"], tuple[str]]:
        kinds = {path: kind for kind, path in _PROVIDERS.items()}
        return provider, (kinds[f"{type(self).__module__}:{type(self).__name__}"],)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        olds, news = self.declared(_olds), self.declared(_news)
        changed = {key for key in olds.keys() | news.keys() if olds.get(key) != news.get(key)}
        return DiffResult(changes=bool(changed), replaces=sorted(changed & self.replacing))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        _reads[id_] += 1
        return ReadResult(id_, props)

    def is_declared(self, id_: str) -> bool:
        """For `diff`: whether the program declares the resource. A refresh asks for a difference too, after each read,
        also of what the same command then deletes (pkg/resource/deploy/step.go, RefreshStep)."""
        if _reads[id_] == 0:
            return True
        _reads[id_] -= 1
        return False

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self.declared(_news) | {key: _olds[key] for key in self.found & _olds.keys()})

    def declared(self, props: dict[str, Any]) -> dict[str, Any]:
        """The declared ones of a resource's properties. Those that begin with "__" are Pulumi's own."""
        return {key: value for key, value in props.items() if not key.startswith("__") and key not in self.found}
