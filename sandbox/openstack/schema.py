"""What Nova accepts in request bodies, by microversion, and how it words what it refuses (Compute API v2.1)."""

import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError

from sandbox.openstack.common import ApiError, is_uuid, json_body

# The N of the microversion 2.N that a request asks for.
MICROVERSION = web.RequestKey("microversion", int)

# `user_data` may be as long as this, encoded.
_MAX_USER_DATA = 65535


def _uuid(value: str) -> str:
    if not is_uuid(value):
        raise ValueError(f"'{value}' is not a 'uuid'")
    return value


def _uuid_or_empty(value: str) -> str:
    return value and _uuid(value)


def _base64(value: str) -> str:
    try:
        base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"'{value[:40]}' is not a 'base64'") from error
    return value


def _trimmed(value: str) -> str:
    if not value.strip() or value != value.strip():
        raise ValueError(f"'{value}' does not match: leading and trailing spaces are not allowed")
    return value


Name = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_trimmed)]
KeypairName = Annotated[Name, Field(pattern=r"^[A-Za-z0-9_\- ]+$")]
Uuid = Annotated[str, AfterValidator(_uuid)]
UserData = Annotated[str, Field(max_length=_MAX_USER_DATA), AfterValidator(_base64)]
Tag = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^,/]*$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-_:. ]+$")]
Metadata = dict[MetadataKey, Annotated[str, Field(max_length=255)]]
DiskConfig = Literal["AUTO", "MANUAL"]
# Numbers may be written as strings.
PositiveInteger = Annotated[int, Field(ge=1)]


class Body(BaseModel):
    """A request body; `since` and `until` name the first and last microversion (2.N) that knows a field."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    since: ClassVar[dict[str, int]] = {}
    until: ClassVar[dict[str, int]] = {}
    required_since: ClassVar[dict[str, int]] = {}


class KeypairBody(Body):
    """`POST /os-keypairs`."""

    since = {"type": 2, "user_id": 10}

    name: KeypairName
    public_key: str | None = None
    type: Literal["ssh", "x509"] = "ssh"
    user_id: str | None = None


class ServerGroupBody(Body):
    """`POST /os-server-groups`."""

    since = {"policy": 64, "rules": 64}
    until = {"policies": 63}
    required_since = {"policy": 64}

    name: Name
    policies: list[str] | None = Field(default=None, min_length=1, max_length=1)
    policy: str | None = None
    rules: dict[str, PositiveInteger] = {}


class NetworkChoice(Body):
    """One of the networks of a new server."""

    uuid: Uuid | None = None
    port: Uuid | None = None
    fixed_ip: IPvAnyAddress | None = None
    tag: Tag | None = None


class BlockDevice(Body):
    """One of the disks of a new server, `block_device_mapping_v2`."""

    source_type: Literal["volume", "image", "snapshot", "blank"]
    destination_type: Literal["local", "volume"] = "local"
    uuid: str = ""
    boot_index: int | None = None
    volume_size: int | None = None
    delete_on_termination: bool = False
    device_name: str | None = None
    device_type: str | None = None
    disk_bus: str | None = None
    guest_format: str | None = None
    no_device: Any = None
    tag: Tag | None = None
    volume_type: str | None = None


class GroupName(Body):
    """A security group of a new server."""

    name: Name


class ServerBody(Body):
    """`POST /servers`."""

    since = {"description": 19, "tags": 52, "trusted_image_certificates": 63, "host": 74, "hostname": 90}
    since |= {"hypervisor_hostname": 74}
    until = {"personality": 56}
    required_since = {"networks": 37}

    name: Name
    flavor: str | int = Field(alias="flavorRef")
    image: Annotated[str, AfterValidator(_uuid_or_empty)] = Field(default="", alias="imageRef")
    networks: list[NetworkChoice] | Literal["none", "auto"] | None = None
    block_device_mapping_v2: list[BlockDevice] = []
    availability_zone: Name | None = None
    key_name: Name | None = None
    security_groups: list[GroupName] = []
    metadata: Metadata = {}
    tags: list[Tag] = Field(default=[], max_length=50)
    user_data: UserData | None = None
    config_drive: bool = False
    description: str | None = Field(default=None, max_length=255)
    hostname: str | None = None
    password: str | None = Field(default=None, alias="adminPass")
    access_ip_v4: IPvAnyAddress | None = Field(default=None, alias="accessIPv4")
    access_ip_v6: IPvAnyAddress | None = Field(default=None, alias="accessIPv6")
    disk_config: DiskConfig = Field(default="MANUAL", alias="OS-DCF:diskConfig")
    min_count: PositiveInteger = 1
    max_count: PositiveInteger | None = None
    # Known and without effect here.
    personality: list[Any] = []
    trusted_image_certificates: list[str] | None = None
    host: str | None = None
    hypervisor_hostname: str | None = None


class ServerChangeBody(Body):
    """`PUT /servers/{id}`."""

    since = {"description": 19, "hostname": 90}

    name: Name | None = None
    description: str | None = Field(default=None, max_length=255)
    hostname: str | None = None
    access_ip_v4: IPvAnyAddress | None = Field(default=None, alias="accessIPv4")
    access_ip_v6: IPvAnyAddress | None = Field(default=None, alias="accessIPv6")
    disk_config: DiskConfig | None = Field(default=None, alias="OS-DCF:diskConfig")


class RebuildBody(Body):
    """The action `rebuild`."""

    since = {"description": 19, "key_name": 54, "user_data": 57, "trusted_image_certificates": 63, "hostname": 90}
    until = {"personality": 56}

    image: Uuid = Field(alias="imageRef")
    name: Name | None = None
    description: str | None = Field(default=None, max_length=255)
    hostname: str | None = None
    key_name: Name | None = None
    user_data: UserData | None = None
    metadata: Metadata | None = None
    password: str | None = Field(default=None, alias="adminPass")
    access_ip_v4: IPvAnyAddress | None = Field(default=None, alias="accessIPv4")
    access_ip_v6: IPvAnyAddress | None = Field(default=None, alias="accessIPv6")
    disk_config: DiskConfig | None = Field(default=None, alias="OS-DCF:diskConfig")
    preserve_ephemeral: bool = False
    personality: list[Any] = []
    trusted_image_certificates: list[str] | None = None


class FixedIp(Body):
    """An address wished for an interface."""

    ip_address: IPvAnyAddress


class InterfaceBody(Body):
    """`POST /servers/{id}/os-interface`."""

    since = {"tag": 49}

    port_id: Uuid | None = None
    net_id: Uuid | None = None
    fixed_ips: list[FixedIp] = Field(default=[], max_length=1)
    tag: Tag | None = None


class AttachmentBody(Body):
    """`POST /servers/{id}/os-volume_attachments`."""

    since = {"tag": 49, "delete_on_termination": 79}

    volume_id: Uuid = Field(alias="volumeId")
    device: str | None = None
    tag: Tag | None = None
    delete_on_termination: bool = False


AnyBody = TypeVar("AnyBody", bound=Body)


async def body_of(request: web.Request, key: str, model: type[AnyBody]) -> AnyBody:
    """The object under `key` in the request's body; ApiError 400 where Nova's JSON schema would refuse it."""
    body = await json_body(request)
    if not isinstance(body.get(key), dict):
        raise ApiError(400, f"'{key}' is a required property")
    return validated(body[key], key, model, minor_version(request))


def validated(given: Any, key: str, model: type[AnyBody], minor: int) -> AnyBody:
    """The value as `model`; ApiError 400 where it does not fit or microversion 2.`minor` does not know a field."""
    if not isinstance(given, dict):
        raise ApiError(400, f"Invalid input for field/attribute {key}. Value: {given}. {given} is not of type 'object'")
    for name in given:
        if not model.since.get(name, 0) <= minor <= model.until.get(name, minor):
            message = f"Additional properties are not allowed ('{name}' was unexpected)"
            raise ApiError(400, f"Invalid input for field/attribute {key}. Value: {given}. {message}")
    for name, first in model.required_since.items():
        if minor >= first and name not in given:
            raise ApiError(400, f"Invalid input for field/attribute {key}. Value: {given}. {_missing(name)}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ApiError(400, _wording(key, given, error)) from error


def _missing(name: str) -> str:
    return f"'{name}' is a required property"


def _wording(key: str, given: Any, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "extra_forbidden"):
        name, path = path[-1], [key, *path[:-1]]
        message = _missing(name)
        if first["type"] == "extra_forbidden":
            message = f"Additional properties are not allowed ('{name}' was unexpected)"
        return f"Invalid input for field/attribute {path[-1]}. Value: {given}. {message}"
    return f"Invalid input for field/attribute {path[-1] if path else key}. Value: {first['input']}. {message}"


def minor_version(request: web.Request) -> int:
    """The N of the microversion 2.N that a request asks for."""
    return request[MICROVERSION]
