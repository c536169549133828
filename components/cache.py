"""The distributed cache of jobs: where it lies, and how managers reach it."""

from dataclasses import dataclass

import pulumi
import pulumi_openstack as openstack

from components.leftovers import Leftovers
from renderers.config_toml import Cache as CacheToml
from settings import ObjectStoreCache, S3Cache


@dataclass(frozen=True)
class CacheArgs:
    """`server` (host and perhaps port) and `insecure` say how the S3 API is reached. `container` is the name of what is
    made in the cloud's object store, and `metadata` marks it."""

    cache: S3Cache | ObjectStoreCache
    server: str
    insecure: bool
    container: str
    metadata: dict[str, str]
    leftovers: Leftovers


class Cache(pulumi.ComponentResource):
    """A bucket that exists, or a container and an EC2 credential in OpenStack, which go with the stack."""

    settings: pulumi.Output[CacheToml]
    """What managers are told; a secret."""

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:index:Cache", name, None, opts)
        cache = args.cache
        bucket: pulumi.Input[str]
        keys: tuple[pulumi.Input[str], pulumi.Input[str]]
        if isinstance(cache, S3Cache):
            bucket, keys = cache.bucket, (cache.access_key.get_secret_value(), cache.secret_key.get_secret_value())
        else:
            bucket = openstack.objectstorage.Container(
                name,
                name=args.container,
                metadata=args.metadata,
                # All of it can be made again.
                force_destroy=True,
                # Two cannot have one name.
                opts=args.leftovers.before_create(self, delete_before_replace=True),
            ).name
            credential = openstack.identity.Ec2CredentialV3(name, opts=args.leftovers.of_credential(self))
            keys = (credential.access, credential.secret)
        self.settings = pulumi.Output.secret(
            pulumi.Output.all(bucket, *keys).apply(
                lambda known: CacheToml(
                    server=args.server,
                    insecure=args.insecure,
                    bucket=known[0],
                    region=cache.region,
                    access_key=known[1],
                    secret_key=known[2],
                    path=cache.path,
                    shared=cache.shared,
                )
            )
        )
        self.register_outputs({})
