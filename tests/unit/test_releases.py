"""The kept states of earlier releases: no engine, no network."""

import base64
import json
import pickle
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import pbkdf2_hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from components.dynamic import provider
from scripts.stack import SANDBOX_PASSPHRASE
from tests.engine.releases import releases

STATES = [
    pytest.param(release.state_file(stack).read_text(), id=f"{release.folder.name}-{stack}")
    for release in releases()
    for stack in release.stacks()
]
DYNAMIC = "pulumi-python:dynamic/"
# How the engine marks a secret: sdk/go/common/resource/sig in Pulumi.
SECRET = ("4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270")


@cache
def decryption(salt: str) -> Callable[[str], bytes]:
    """As Pulumi decrypts with a passphrase: sdk/go/common/resource/config/crypt.go."""
    key = pbkdf2_hmac("sha256", SANDBOX_PASSPHRASE.encode(), base64.b64decode(salt.split(":")[1]), 1_000_000, 32)

    def decrypt(text: str) -> bytes:
        _, nonce, encrypted = text.split(":")
        return AESGCM(key).decrypt(base64.b64decode(nonce), base64.b64decode(encrypted), None)

    return decrypt


def stored_providers(state: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Each dynamic resource's kind, and the pickle that is loaded to delete it."""
    decrypt = decryption(state["deployment"]["secrets_providers"]["state"]["salt"])
    for resource in state["deployment"]["resources"]:
        if resource["type"].startswith(DYNAMIC):
            stored = resource["outputs"]["__provider"]
            assert stored[SECRET[0]] == SECRET[1]
            yield resource["type"].removeprefix(DYNAMIC), base64.b64decode(json.loads(decrypt(stored["ciphertext"])))


@pytest.mark.parametrize("state", STATES)
def test_the_providers_in_it_are_loaded(state: str) -> None:
    found = dict(stored_providers(json.loads(state)))
    assert found
    for kind, stored in found.items():
        assert type(pickle.loads(stored)) is type(provider(kind))


@pytest.mark.parametrize("state", STATES)
def test_it_tells_no_secret_and_nothing_of_the_machine_that_it_was_made_on(state: str) -> None:
    assert not re.search(
        r"gl(rt|pat)-[\w.-]{20}|PRIVATE KEY|/site-packages/|/root/|/tmp/|/work/|/home/(?!gitlab-runner)", state
    )
