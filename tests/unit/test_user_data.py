"""How long user_data may be, what is done where it is longer, and who reads it then."""

import gzip
from base64 import b64decode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from guard_rails.rules import INSTANCE, RULES

from clients.text import one_line
from components.machine_data import STAND_IN_KEY, host_data, host_data_mistake, is_compressed, worker_data_mistake
from renderers.user_data import MAXIMUM_BYTES, encoded_bytes, fits, packed, unpacked
from settings import KeyPair, OpenStackHost
from tests.certificates import certificate

HOST = OpenStackHost(
    kind="openstack", flavor="f", image="i", network="n", key_pair=KeyPair(name="me"), ssh_from=("192.0.2.0/24",)
)


def with_certificates(number: int) -> OpenStackHost:
    return HOST.model_copy(update={"ca_certificates": tuple(certificate() for _ in range(number))})


def host_key() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def test_the_limit_is_of_base64() -> None:
    assert encoded_bytes("a") == encoded_bytes("abc") == 4
    assert fits("a" * 49149)
    assert not fits("a" * 49152)
    # A letter is not a byte.
    assert not fits("ä" * 24577)


def test_what_is_measured_before_there_is_a_key_is_what_it_will_be() -> None:
    for host in (HOST, with_certificates(80)):
        measured, real = (host_data(host, 1, 1450, key, None) for key in (STAND_IN_KEY, host_key()))
        assert len(measured) == len(real)
        assert abs(len(packed(measured)) - len(packed(real))) < 128


def test_a_text_that_fits_stays_as_it_is() -> None:
    assert not is_compressed(HOST, 1450)
    assert host_data_mistake(HOST, 1450) is None


def test_a_longer_one_is_compressed_as_cloud_init_reads_it() -> None:
    host = with_certificates(130)
    assert is_compressed(host, 1450)
    assert host_data_mistake(host, 1450) is None
    text = host_data(host, 1, 1450, host_key(), None)
    sent = packed(text)
    assert len(sent) <= MAXIMUM_BYTES < encoded_bytes(text)
    assert gzip.decompress(b64decode(sent, validate=True)).decode() == text
    assert unpacked(sent) == text
    assert unpacked(text) == text


def test_one_that_is_too_long_even_so_is_refused_with_what_is_large_in_it() -> None:
    mistake = host_data_mistake(with_certificates(800), 1450)
    assert mistake is not None
    assert mistake.startswith("user_data would have ")
    assert "bytes compressed and in base64, and Nova takes 65535; of its " in mistake
    assert "are host.caCertificates " in mistake
    assert "proxy" not in mistake


def test_workers_are_not_sent_what_is_compressed() -> None:
    host = with_certificates(60)
    files = {"/etc/gitlab-runner/ca.crt": "".join(host.ca_certificates)}

    def files_of(of: OpenStackHost) -> dict[str, str]:
        return files if of.ca_certificates else {}

    mistake = worker_data_mistake(host, 1450, files_of)
    assert mistake is not None
    assert "bytes in base64, and Nova takes 65535" in mistake
    # In the machine's own and in the file for jobs.
    assert int(mistake.split("host.caCertificates ")[1].split()[0]) > 2 * len(files["/etc/gitlab-runner/ca.crt"])
    assert worker_data_mistake(HOST, 1450, files_of) is None


@pytest.mark.parametrize("plain", [True, False])
def test_policies_see_what_is_compressed(plain: bool) -> None:
    (rule,) = (rule for rule in RULES if rule.name == "no-secret-in-user-data")
    text = host_data(HOST, 1, 1450, host_key(), None)
    for data, found in ((text, 0), (f"{text}# glpat-{'x' * 20}\n", 1)):
        assert len(rule.violations(INSTANCE, {"userData": data if plain else packed(data)})) == found


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            f"Invalid input for user_data. Value: {'QUJD' * 30000}. is too long",
            "Invalid input for user_data. Value: […]",
        ),
        ("Cannot connect to proxy http://me:secret@proxy:3128/x", "Cannot connect to proxy http://[…]proxy:3128/x"),
        (f"token glpat-{'x' * 20} was revoked", "token […] was revoked"),
        (f"of glrt-t1_{'x' * 20}.", "of […]"),
        ("two\n  lines", "two lines"),
        ("No image 5c8ba6fd-4c6c-4d4f-a8f4-6f2d6bb4a1c0", "No image 5c8ba6fd-4c6c-4d4f-a8f4-6f2d6bb4a1c0"),
    ],
)
def test_what_others_answer_is_told_in_a_line_without_secrets(answer: str, line: str) -> None:
    assert one_line(answer).startswith(line)
    assert "secret" not in one_line(answer)


def test_a_private_key_in_an_answer_is_not_told() -> None:
    assert one_line(f"key: {host_key()[0]} end") == "key: […] end"


def test_a_long_answer_is_cut() -> None:
    assert len(one_line("word " * 1000)) < 510
