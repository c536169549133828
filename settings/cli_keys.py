"""What Pulumi's CLI itself reads in a stack's file, before any program runs.

At its top stand the keys by which the stack's secrets are encrypted, and imports of environments; the secrets are
anywhere below `config`, as `{secure: …}`. Stacks may share a passphrase, so what keeps the secrets of one from the
others is who may write into which file: a secret that was copied would be decrypted for whoever copied it.
"""

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from settings.ownership import suggestion
from settings.yaml_file import Origin, Value

_KEYS = ("encryptionsalt", "encryptedkey")
"""Those of which every stack has its own."""
CLI_KEYS = ("secretsprovider", *_KEYS, "environment")
TOP = ("config", *CLI_KEYS)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")


def unknown_keys(document: Value) -> Iterator[str]:
    """A line for each key at the top of a stack's file that neither Pulumi nor the program knows."""
    for key, value in document.content.items():
        if key not in TOP:
            yield f"{value.origin}: {key}: unknown key{suggestion(key, TOP)}; at its top a stack's file has " + (
                f"{', '.join(TOP[:-1])} and {TOP[-1]}"
            )


def copies(document: Value, others: Iterable[Path], when: str = "") -> Iterator[str]:
    """A line for each secret of a stack's file that stands in another stack's file too, and for a key with secrets.

    Of stacks that share a key only those matter that hold secrets. `when` says of which time the others are.
    """
    secrets = list(_secrets(document, ()))
    if not secrets:
        return
    known: dict[bytes, Origin] = {}
    for other in others:
        text = other.read_text(encoding="utf-8", errors="replace")
        if "secure" not in text:
            continue
        for found in _BASE64.finditer(text):
            known.setdefault(_decoded(found[0]), Origin(other, text.count("\n", 0, found.start()) + 1))
    for name, value in secrets:
        there = known.get(_decoded(value.content))
        if there is not None:
            yield (
                f"{value.origin}: {name}: is the encrypted value of {there}{when}; a secret is encrypted for one "
                "stack: encrypt it anew, with `pulumi config set --secret`"
            )
    for key in [key for key in _KEYS if key in document.content]:
        value = document.content[key]
        there = known.get(_decoded(str(value.content)))
        if there is not None:
            yield (
                f"{value.origin}: {key}: is that of {there}{when}; a stack with secrets has a key of its own: "
                "make one with `pulumi stack change-secrets-provider`"
            )


def changes(before: Value | None, after: Value, providers: frozenset[str]) -> Iterator[str]:
    """A line for each key at the top of a stack's file that a change may not bring.

    `before` is the file before the change, None for a new stack, whose secrets provider must be one of `providers`,
    those of the stacks that there were. The first salt of a stack is no change: only who knows the passphrase can
    make one.
    """
    old: Mapping[str, Value] = before.content if before is not None else {}
    has_none = not old.keys() & set(CLI_KEYS)
    for key in CLI_KEYS:
        was, now = (each[key].plain if key in each else None for each in (old, after.content))
        if was == now or (has_none and key == "encryptionsalt"):
            continue
        if before is None and (key == "encryptedkey" or (key == "secretsprovider" and now in providers)):
            continue
        origin = after.content[key].origin if key in after.content else Origin(after.origin.file, None)
        reason = "differs from what it was" if key in old else "is new"
        yield (
            f"{origin}: {key}: {reason}: Pulumi reads it before any check, so no change under review may set it; "
            "who runs the stacks does so on the default branch"
        )


def _secrets(value: Value, location: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    """Encrypted values with the names of the keys that hold them."""
    if isinstance(value.content, dict):
        for key, inner in value.content.items():
            if key == "secure" and len(value.content) == 1 and isinstance(inner.content, str):
                yield ".".join(location[1:]), Value(value.origin, inner.content)
            else:
                yield from _secrets(inner, (*location, key))
    elif isinstance(value.content, list):
        for index, inner in enumerate(value.content):
            yield from _secrets(inner, (*location[:-1], f"{location[-1]}[{index}]"))


def _decoded(text: str) -> bytes:
    """What is encrypted in a value like `v1:<nonce>:<ciphertext>`; the same bytes can be written in several ways."""
    last = "".join(text.rpartition(":")[2].split())
    try:
        return b64decode(last.rstrip("=") + "==")
    except NotBase64:
        return last.encode()
