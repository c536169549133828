"""Options for ssh, as the docker provider hands them on."""

import subprocess

import pytest
from pydantic import ValidationError

from clients.ssh import ssh_options
from components.docker_connection import options_for
from settings import DockerHost, Ssh


def resolved(*options: str) -> dict[str, str]:
    """What `ssh` itself makes of the options."""
    command = ["ssh", "-F", "none", "-G", "-p", "2222", *options, "host.example"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def test_ssh_accepts_them_and_checks_the_key() -> None:
    settings = resolved(*ssh_options("ssh-ed25519 AAAA"))
    assert settings["stricthostkeychecking"] == "true"
    assert settings["knownhostscommand"] == "/bin/echo %H ssh-ed25519 AAAA"
    assert settings["controlmaster"] == "auto"


def test_a_connection_is_only_shared_by_those_who_expect_the_same_key() -> None:
    one, same, other = (resolved(*ssh_options(key))["controlpath"] for key in ("a AAAA", "a AAAA", "b AAAA"))
    assert one == same
    assert one != other


def test_without_a_key_the_users_known_hosts_decide() -> None:
    settings = resolved(*ssh_options(None))
    assert settings["stricthostkeychecking"] == "true"
    assert "known_hosts" in settings["userknownhostsfile"]


def test_dockers_own_connect_timeout_comes_too_late() -> None:
    assert resolved(*ssh_options(None), "-o", "ConnectTimeout=30")["connecttimeout"] == "60"


def test_a_stack_adds_options_but_weakens_none() -> None:
    options = ssh_options(
        "ssh-ed25519 AAAA",
        jump_host="me@bastion.example",
        identity_file="~/.ssh/runners",
        options={"StrictHostKeyChecking": "no", "Compression": "yes"},
    )
    settings = resolved(*options)
    assert settings["stricthostkeychecking"] == "true"
    assert settings["compression"] == "yes"
    assert settings["proxyjump"] == "me@bastion.example"
    assert settings["identityfile"] == "~/.ssh/runners"


ALLOWED = {
    "AddressFamily": "inet6",
    "BindAddress": "192.0.2.7",
    "BindInterface": "lo",
    "Ciphers": "+aes256-ctr,aes128-ctr",
    "Compression": "yes",
    "ConnectTimeout": "90",
    "ConnectionAttempts": "3",
    "HostKeyAlgorithms": "ssh-ed25519,rsa-sha2-512",
    "IPQoS": "af21 cs1",
    "IdentitiesOnly": "yes",
    "KexAlgorithms": "curve25519-sha256@libssh.org",
    "LogLevel": "DEBUG2",
    "MACs": "hmac-sha2-512",
    "PubkeyAcceptedAlgorithms": "^ssh-ed25519",
    "RekeyLimit": "1G 1h",
    "RequiredRSASize": "2048",
    "ServerAliveCountMax": "10",
    "ServerAliveInterval": "15",
    "TCPKeepAlive": "no",
}
REFUSED = {
    "BatchMode": "no",
    "CanonicalizeHostname": "always",
    "CertificateFile": "/etc/passwd",
    "CheckHostIP": "no",
    "ControlMaster": "no",
    "ControlPath": "/tmp/socket",
    "ControlPersist": "no",
    "DynamicForward": "1080",
    "EnableEscapeCommandline": "yes",
    "EnableSSHKeysign": "yes",
    "ForkAfterAuthentication": "yes",
    "ForwardAgent": "yes",
    "ForwardX11": "yes",
    "GSSAPIDelegateCredentials": "yes",
    "GlobalKnownHostsFile": "/tmp/hosts",
    "Host": "*",
    "HostKeyAlias": "other",
    "HostName": "stranger.example",
    "HostbasedAuthentication": "yes",
    "IdentityAgent": "/tmp/agent",
    "IdentityFile": "/tmp/key",
    "Include": "/tmp/config",
    "KnownHostsCommand": "/bin/sh -c id",
    "LocalCommand": "id",
    "LocalForward": "8080 localhost:80",
    "LogVerbose": "*",
    "Match": "exec id",
    "NoHostAuthenticationForLocalhost": "yes",
    "PKCS11Provider": "/tmp/library.so",
    "PasswordAuthentication": "yes",
    "PermitLocalCommand": "yes",
    "PermitRemoteOpen": "any",
    "Port": "22",
    "ProxyCommand": "id",
    "ProxyJump": "stranger.example",
    "ProxyUseFdpass": "yes",
    "RemoteCommand": "id",
    "RemoteForward": "9000",
    "RevokedHostKeys": "none",
    "SecurityKeyProvider": "/tmp/library.so",
    "SendEnv": "*",
    "SetEnv": "A=b",
    "StdinNull": "yes",
    "StreamLocalBindUnlink": "yes",
    "StrictHostKeyChecking": "no",
    "Tag": "x",
    "Tunnel": "yes",
    "UpdateHostKeys": "yes",
    "User": "root",
    "UserKnownHostsFile": "/tmp/hosts",
    "VerifyHostKeyDNS": "yes",
    "XAuthLocation": "/tmp/program",
    "": "x",
    "Compression yes\nProxyCommand": "id",
}


def refusal(**said: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Ssh.model_validate(said)
    (error,) = caught.value.errors()
    return error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
@pytest.mark.parametrize("option", ALLOWED)
def test_options_that_tune_a_connection_reach_ssh(option: str, spelling: type[str]) -> None:
    said = Ssh(options={spelling(option): ALLOWED[option]})
    options = options_for(said, "ssh-ed25519 AAAA")
    assert options.count(f"{option}={ALLOWED[option]}") == 1
    # ssh takes it; of two that say the same the first one would count.
    assert resolved(*options)["stricthostkeychecking"] == "true"
    assert sum(part.lower().startswith(f"{option.lower()}=") for part in options) == 1


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
@pytest.mark.parametrize("option", REFUSED)
def test_options_that_run_forward_read_or_loosen_something_are_refused(option: str, spelling: type[str]) -> None:
    assert refusal(options={spelling(option): REFUSED[option]}).startswith(f"options.{spelling(option)} is ")


@pytest.mark.parametrize("option", ALLOWED)
@pytest.mark.parametrize(
    "value", ["", "yes\nProxyCommand=id", "`id`", "$(id)", "a b c", '"x"', "%h", "-oProxyCommand=id;"]
)
def test_values_are_of_their_options_form(option: str, value: str) -> None:
    assert refusal(options={option: value}) == f"options.{option} has a value that {option} does not take here"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("proxycommand", "is refused; use jumpHost, or ProxyCommand in your own ~/.ssh/config"),
        ("IdentityFile", "is refused; use identityFile"),
        ("KnownHostsCommand", "is set by the program, which always checks the host key"),
        ("Cipher", "is refused; did you mean Ciphers? A stack may set AddressFamily, BindAddress,"),
    ],
)
def test_what_to_use_instead_is_told(option: str, told: str) -> None:
    assert refusal(options={option: "x"}).startswith(f"options.{option} {told}")


def test_all_options_that_are_wrong_are_told_at_once() -> None:
    told = refusal(options={"Compression": "maybe", "compression": "yes", "ForwardAgent": "yes", "Port": "1"})
    assert told.startswith("options.Compression has a value that Compression does not take here; options.ForwardAgent")
    assert told.endswith("options.Port is refused; use port")
    assert "options.compression is there twice" in refusal(options={"Compression": "yes", "compression": "yes"})


@pytest.mark.parametrize("value", ["me@bastion.example:2222", "bastion", "me@[2001:db8::1]:22", "one,me@two:2222"])
def test_a_jump_host_is_a_host(value: str) -> None:
    assert resolved(*options_for(Ssh(jump_host=value), None))["proxyjump"] == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("jump_host", value)
            for value in (
                "",
                "-oProxyCommand=id",
                "a -oProxyCommand=id",
                "me@-x",
                "a;id",
                "$(id)",
                "`id`@a",
                "a,",
                "%h",
            )
        ),
        *(("user", value) for value in ("", "-oProxyCommand=id", "a b", "$(id)", "a@b", "a;id", "%u", "a\n")),
        *(("identity_file", value) for value in ("", "-x", "a b", "$HOME/key", "${HOME}/key", "%d/key", "`id`", "k\n")),
    ],
)
def test_a_name_is_nothing_but_a_name(key: str, value: str) -> None:
    assert refusal(**{key: value}).startswith("must be ")


@pytest.mark.parametrize(
    "value", ["~/.ssh/runners", "~ops/key", "keys/of-payments", "/tmp/key_1.pem", "/tmp/schlüssel"]
)
def test_an_identity_file_is_a_path(value: str) -> None:
    assert Ssh(identity_file=value).identity_file == value


@pytest.mark.parametrize(
    "url", ["ssh://-oProxyCommand=id@host", "ssh://me@-oProxyCommand=id", "ssh://me@host/$(id)", "ssh://a:b@host"]
)
def test_the_url_of_an_engine_holds_nothing_else_either(url: str) -> None:
    with pytest.raises(ValidationError, match="must be unix:///path, ssh://user@host"):
        DockerHost(kind="docker", url=url)


@pytest.mark.parametrize(
    "url", ["ssh://host", "ssh://me@host:2222", "ssh://me@[2001:db8::1]:22", "ssh://me@host/run/docker.sock"]
)
def test_the_url_of_an_engine_by_ssh(url: str) -> None:
    assert DockerHost(kind="docker", url=url).url == url


@pytest.mark.parametrize("key", ["ssh-%u; AAAA", "ssh-$(id) AAAA", 'ssh-"x AAAA'])
def test_a_host_key_holds_nothing_that_a_command_would_replace(key: str) -> None:
    with pytest.raises(ValidationError, match="must be a public SSH host key"):
        DockerHost(kind="docker", url="ssh://host", host_key=key)
