"""The SSH host key of a virtual machine, made before the machine so that its first connection can be checked."""

from typing import Any
from uuid import uuid4

import pulumi
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pulumi.dynamic import CreateResult, DiffResult, Resource

from components.dynamic import Provider


class _HostKeyProvider(Provider):
    found = frozenset({"private_key", "public_key"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return CreateResult(uuid4().hex, {"private_key": private.decode(), "public_key": public.decode()})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        # The update of an earlier version could lose the key. Its machine cannot be reached: only a new key helps.
        lost = self.found - _olds.keys()
        return DiffResult(changes=bool(lost), replaces=sorted(lost))


class HostKey(Resource, module="ssh", name="HostKey"):
    """An ed25519 SSH host key."""

    private_key: pulumi.Output[str]
    """OpenSSH private key format; a secret."""
    public_key: pulumi.Output[str]
    """One line: ssh-ed25519 AAAA…"""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["private_key"])
        super().__init__(
            _HostKeyProvider(),
            name,
            {"private_key": None, "public_key": None},
            pulumi.ResourceOptions.merge(opts, secret),
        )
