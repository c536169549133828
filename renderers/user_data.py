"""user_data as Nova takes it: at most so many bytes of base64, and compressed where the text alone would be more."""

import gzip
from base64 import b64decode, b64encode
from collections.abc import Mapping

MAXIMUM_BYTES = 65_535
"""Of base64 (Nova, api/openstack/compute/schemas/servers.py: maxLength of user_data)."""
_GZIP = b"\x1f\x8b"
# By how many bytes one host key may be compressed better than another.
_MARGIN_BYTES = 256


def encoded_bytes(text: str) -> int:
    """How long a text is in base64."""
    return (len(text.encode()) + 2) // 3 * 4


def fits(text: str) -> bool:
    """Whether Nova takes a text as it is."""
    return encoded_bytes(text) <= MAXIMUM_BYTES


def packed(text: str) -> str:
    """A text compressed, in base64: the provider hands that over as it is (gophercloud, servers.CreateOpts), and
    cloud-init, which reads it, knows gzip ("User data formats")."""
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def unpacked(sent: str) -> str:
    """The text of what was sent, compressed or not."""
    try:
        data = b64decode(sent, validate=True)
    except ValueError:
        return sent
    return gzip.decompress(data).decode() if data.startswith(_GZIP) else sent


def too_long(text: str, without: Mapping[str, str], *, compressed: bool) -> str | None:
    """Why Nova would refuse a text, with what is large in it; None where it takes it.

    `without` are the texts that would be left without something, by what that is. `compressed` says whether it may be
    sent so.
    """
    size = len(packed(text)) + _MARGIN_BYTES if compressed else encoded_bytes(text)
    if fits(text) or size <= MAXIMUM_BYTES:
        return None
    parts = {name: len(text.encode()) - len(rest.encode()) for name, rest in without.items()}
    largest = sorted((name for name, bytes_ in parts.items() if bytes_), key=lambda name: -parts[name])
    told = ", ".join(f"{name} {parts[name]} bytes" for name in largest)
    form = "compressed and in base64" if compressed else "in base64"
    return (
        f"user_data would have {size} bytes {form}, and Nova takes {MAXIMUM_BYTES}; of its {len(text.encode())} bytes "
        f"are {told}: make that less"
    )
