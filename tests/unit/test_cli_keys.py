"""What Pulumi's CLI reads in a stack's file before any program runs: checked before the CLI is."""

import subprocess
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import review.__main__
from review.previews import Preview
from review.stacks import Stacks, refusals
from scripts import stack as scripts_stack
from scripts.console import Failure
from settings import SettingsError
from settings.layers import effective, stacks

SALT = f"v1:{b64encode(b'salt-one').decode()}:v1:{b64encode(b'nonce-nonce1').decode()}:{b64encode(b'x' * 22).decode()}"
OTHER_SALT = SALT.replace(b64encode(b"x" * 22).decode(), b64encode(b"y" * 22).decode())
SECRET = f"v1:{b64encode(b'nonce-nonce2').decode()}:{b64encode(b'the token of prod').decode()}"
PROD = f"config:\n  gitlab:token:\n    secure: {SECRET}\nencryptionsalt: {SALT}\n"


def folder_of(project: Path, files: Mapping[str, str]) -> Path:
    """A folder of stacks without layers, with these files."""
    folder = project / "stacks"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"Pulumi.{name}.yaml").write_text(text)
    return folder


def mistakes(folder: Path, stack: str) -> list[str]:
    try:
        effective(stack, folder=folder)
    except SettingsError as error:
        return str(error).replace(f"{folder}/", "").splitlines()
    return []


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("encryptionSalt", "; did you mean encryptionsalt?"),
        ("secretProvider", "; did you mean secretsprovider?"),
        ("environments", "; did you mean environment?"),
        ("runtime", ""),
    ],
)
def test_what_nobody_knows_at_the_top_is_refused(tmp_path: Path, key: str, hint: str) -> None:
    folder = folder_of(tmp_path, {"dev": f"config: {{}}\n{key}: x\n"})
    assert mistakes(folder, "dev") == [
        f"Pulumi.dev.yaml, line 2: {key}: unknown key{hint}; at its top a stack's file has config, secretsprovider, "
        "encryptionsalt, encryptedkey and environment"
    ]


@pytest.mark.parametrize(
    ("line", "config"),
    [
        (5, "config:\n  gitlab-runners:runners:\n    app:\n      environment:\n        TOKEN:\n          secure: {}\n"),
        (2, "config:\n  gitlab-runners:x: [{{secure: '{}'}}]\n"),
        (2, 'config:\n  gitlab:token: {{secure: "{}"}}\n'),
    ],
)
def test_a_secret_that_was_copied_from_another_stack_is_refused(tmp_path: Path, line: int, config: str) -> None:
    folder = folder_of(tmp_path, {"prod": PROD, "dev": config.format(SECRET)})
    (told,) = mistakes(folder, "dev")
    assert told.startswith(f"Pulumi.dev.yaml, line {line}: gitlab")
    assert "is the encrypted value of Pulumi.prod.yaml, line 3; a secret is encrypted for one stack" in told


@pytest.mark.parametrize("rewritten", [lambda text: f'"{text[:-8]}\\n{text[-8:]}"', lambda text: text[:-3] + "P=="])
def test_so_is_one_that_was_written_in_another_way(tmp_path: Path, rewritten: Callable[[str], str]) -> None:
    """Base64 lets the bits behind the last byte be anything, and Pulumi's decoder skips line breaks."""
    secret = f"v1:{b64encode(b'nonce-nonce2').decode()}:{b64encode(b'16 bytes of that').decode()}"
    assert secret.endswith("A==")
    prod = PROD.replace(SECRET, secret)
    folder = folder_of(tmp_path, {"prod": prod, "dev": f"config: {{gitlab:token: {{secure: {rewritten(secret)}}}}}\n"})
    (line,) = mistakes(folder, "dev")
    assert "is the encrypted value of Pulumi.prod.yaml, line 3" in line


@pytest.mark.parametrize("key", ["encryptionsalt", "encryptedkey"])
def test_a_stack_with_secrets_has_a_key_of_its_own(tmp_path: Path, key: str) -> None:
    own = f"config: {{gitlab:token: {{secure: 'v1:{b64encode(b'a').decode()}:{b64encode(b'own' * 9).decode()}'}}}}\n"
    prod = PROD.replace("encryptionsalt", key)
    folder = folder_of(tmp_path, {"prod": prod, "dev": f"{own}{key}: {SALT}\n", "other": f"{own}{key}: {OTHER_SALT}\n"})
    assert mistakes(folder, "dev") == [
        "Pulumi.dev.yaml, line 1: gitlab:token: is the encrypted value of Pulumi.other.yaml, line 1; a secret is "
        "encrypted for one stack: encrypt it anew, with `pulumi config set --secret`",
        f"Pulumi.dev.yaml, line 2: {key}: is that of Pulumi.prod.yaml, line 4; a stack with secrets has a key of its "
        "own: make one with `pulumi stack change-secrets-provider`",
    ]


def test_stacks_without_secrets_may_share_a_salt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"prod": PROD, "dev": f"config: {{}}\nencryptionsalt: {SALT}\n"})
    assert mistakes(folder, "dev") == mistakes(folder, "prod") == []


@pytest.mark.parametrize("stack", stacks())
def test_the_shipped_stacks_copy_nothing(stack: str) -> None:
    effective(stack)


REFUSED = "Pulumi reads it before any check, so no change under review may set it"


def refused(tmp_path: Path, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    for side, files in (("before", before), ("after", after)):
        folder_of(tmp_path / side, files)
    return refusals(after, Stacks(tmp_path / "before"), Stacks(tmp_path / "after"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (f"encryptionsalt: {SALT}\n", f"encryptionsalt: {OTHER_SALT}\n", ", line 1: encryptionsalt: differs"),
        (f"encryptionsalt: {SALT}\n", "config: {}\n", ": encryptionsalt: differs"),
        (
            "secretsprovider: awskms://ours\n",
            "secretsprovider: awskms://theirs\n",
            ", line 1: secretsprovider: differs",
        ),
        ("config: {}\n", "config: {}\nsecretsprovider: awskms://theirs\n", ", line 2: secretsprovider: is new"),
        ("encryptedkey: abc\n", "encryptedkey: def\n", ", line 1: encryptedkey: differs"),
        ("config: {}\n", "environment: [prod]\n", ", line 1: environment: is new"),
        ("environment: [dev]\n", "environment: [dev, prod]\n", ", line 1: environment: differs"),
        (None, "secretsprovider: awskms://theirs\n", ", line 1: secretsprovider: is new"),
        (None, "environment: [prod]\n", ", line 1: environment: is new"),
    ],
)
def test_a_change_does_not_set_what_pulumi_reads_first(
    tmp_path: Path, before: str | None, after: str, told: str
) -> None:
    others = {"other": "secretsprovider: awskms://ours\n"}
    found = refused(tmp_path, others | ({"dev": before} if before is not None else {}), others | {"dev": after})
    assert found.keys() == {"dev"}
    assert found["dev"].startswith(f"stacks/Pulumi.dev.yaml{told}")
    assert REFUSED in found["dev"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("config: {}\n", f"config: {{}}\nencryptionsalt: {SALT}\n"),
        (f"config: {{}}\nencryptionsalt: {SALT}\n", f"config: {{a: 1}}\nencryptionsalt: {SALT}\n"),
        (None, f"config: {{}}\nencryptionsalt: {SALT}\n"),
        (None, "secretsprovider: awskms://ours\nencryptedkey: abc\n"),
    ],
)
def test_a_stacks_first_salt_is_no_such_change(tmp_path: Path, before: str | None, after: str) -> None:
    others = {"other": "secretsprovider: awskms://ours\n"}
    assert refused(tmp_path, others | ({"dev": before} if before else {}), others | {"dev": after}) == {}


def test_a_secret_is_not_moved_to_another_stack_either(tmp_path: Path) -> None:
    found = refused(tmp_path, {"prod": PROD}, {"prod": "config: {}\n", "evil": PROD})
    where = "stacks/Pulumi.evil.yaml, line"
    there = "stacks/Pulumi.prod.yaml, line"
    assert f"{where} 2: gitlab:token: is the encrypted value of {there} 3 as it was before the change" in found["evil"]
    assert f"{where} 4: encryptionsalt: is that of {there} 4 as it was before the change" in found["evil"]
    assert "encryptionsalt: differs" in found["prod"]


@pytest.mark.parametrize("gone", ["teams/a.yaml", "environments/dev.yaml"])
def test_a_change_does_not_take_a_stack_out_of_its_environment(tmp_path: Path, gone: str) -> None:
    for side in ("before", "after"):
        folder = folder_of(tmp_path / side, {"a-dev": "config: {}\n"})
        for file in ("teams/a.yaml", "environments/dev.yaml"):
            (folder / file).parent.mkdir()
            (folder / file).write_text("config: {}\n")
    sides = Stacks(tmp_path / "before"), Stacks(tmp_path / "after")
    assert refusals(["a-dev"], *sides) == {}
    (tmp_path / "after" / "stacks" / gone).unlink()
    assert refusals(["a-dev"], *sides) == {
        "a-dev": "stacks/Pulumi.a-dev.yaml: has no layers any more; this change removes one of their files"
    }


def test_a_review_starts_no_preview_of_such_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.com", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    folder = folder_of(tmp_path, {"dev": f"encryptionsalt: {SALT}\n", "prod": "config: {}\n"})
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=before")
    git("switch", "--quiet", "--create=branch")
    (folder / "Pulumi.dev.yaml").write_text(f"encryptionsalt: {OTHER_SALT}\n")
    git("commit", "--quiet", "--all", "--message=change")
    previewed: list[list[str]] = []

    def previews(stacks: list[str], *_: object, **__: object) -> dict[str, Preview]:
        previewed.append(stacks)
        return {}

    monkeypatch.setattr(review.__main__, "ROOT", tmp_path)
    monkeypatch.setattr(review.__main__, "previews", previews)
    assert review.__main__.main(["--base=main", "--no-post", f"--output={tmp_path / 'preview.md'}"]) == 1
    assert previewed == [[]]
    assert "stacks/Pulumi.dev.yaml, line 1: encryptionsalt: differs from what it was" in capsys.readouterr().out


def test_no_command_starts_pulumi_on_a_file_with_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, {"prod": PROD, "dev": PROD})

    def started(*_: object, **__: object) -> None:
        raise AssertionError("pulumi was started")

    monkeypatch.setattr(scripts_stack, "stack_file", lambda name: folder / f"Pulumi.{name}.yaml")
    monkeypatch.setattr(scripts_stack, "effective", lambda name: effective(name, folder=folder))
    monkeypatch.setattr(subprocess, "Popen", started)
    for command in ("up", "preview", "refresh", "down", "run"):
        with pytest.raises(Failure, match="is the encrypted value of"):
            scripts_stack.main([command, "--stack=acme/gitlab-runners/dev"])
