"""The dynamic resources of the bare program.

They have a module of their own: classes of a program's main file are pickled whole, each deeper than the one before,
until Python's stack ends.
"""

from typing import Any
from uuid import uuid4

import pulumi
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pulumi.dynamic import CreateResult, Resource, ResourceProvider


class KeyProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return CreateResult(uuid4().hex, {"private_key": private, "public_key": public})


class NotedProvider(ResourceProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(uuid4().hex, props)


class HostKey(Resource, module="ssh", name="HostKey"):
    private_key: pulumi.Output[str]
    public_key: pulumi.Output[str]


class DeclaredRules(Resource, module="openstack", name="DeclaredRules"): ...


class JobsEnded(Resource, module="gitlab", name="JobsEnded"): ...


class Drain(Resource, module="docker", name="Drain"): ...


class Handover(Resource, module="docker", name="Handover"): ...
