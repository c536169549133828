"""Options for ssh, as the docker provider hands them on."""

import subprocess

from clients.ssh import ssh_options


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
