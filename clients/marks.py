"""The marks of a stack: by them what it made is told from what others made, where its state does not say."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clients.openstack import PROJECT_METADATA, STACK_METADATA


@dataclass(frozen=True)
class Marks:
    """Those of a stack, by the names of its Pulumi project and its own."""

    project: str
    stack: str

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of machines and their workers, volumes, and the object store's container."""
        return {PROJECT_METADATA: self.project, STACK_METADATA: self.stack}

    @property
    def description(self) -> str:
        """Description of what all machines share."""
        return f"{self.project}, stack {self.stack}"

    def of_host(self, name: str) -> str:
        """Description of what a machine has for itself."""
        return f"{self.description}, host {name}"

    def of_workers(self, runner: str) -> str:
        """Description of what the workers of a runner have; more may follow after a comma."""
        return f"{self.description}, workers of {runner}"

    @property
    def container(self) -> str:
        """Name of the object store's container, where the stack file gives none."""
        return f"{self.project}-{self.stack}-cache"

    def are_in(self, metadata: Mapping[str, str] | None) -> bool:
        """Whether metadata are this stack's. (An object store does not keep the case of keys.)"""
        return self.metadata.items() <= {key.lower(): value for key, value in (metadata or {}).items()}.items()

    def describe(self, description: str | None) -> bool:
        """Whether a description is this stack's: names have no comma in them."""
        return f"{description}, ".startswith(f"{self.description}, ")

    def may_name_key_pair(self, name: str, runners: Iterable[str]) -> bool:
        """Whether a key pair of the stack, or of the workers of one of these runners, may have this name."""
        groups = [self.stack, *(f"{self.stack}-{runner}-workers" for runner in runners)]
        return any(re.fullmatch(f"{re.escape(group)}-[0-9a-f]{{8}}", name) for group in groups)
