"""Brings the tools: `python3 -m scripts.bootstrap [--official] [--plugins built]`.

Needs Python alone (and Go, where something has to be built), and does no work twice.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.console import Failure, Step, failures_in_one_line, last_line
from scripts.toolchain import POLICY_VENV, PROVIDERS, ROOT, VENV, Toolchain, pinned, users_pulumi_home

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gitlab-runners" / "pulumi"
REQUIREMENTS = [ROOT / name for name in ("requirements.txt", "requirements-dev.txt", "sandbox/requirements.txt")]

# https://www.pulumi.com/docs/install/: where the installer, the CLI and the plugins come from.
DOWNLOADS = "https://get.pulumi.com/"
PROBE_TIMEOUT_S = 5
# The CLI is the largest download, some 100 MB.
DOWNLOAD_TIMEOUT_S = 300
# How long a failed download is not tried again.
FAILURE_KEPT_S = 24 * 60 * 60

ENGINE = "github.com/pulumi/pulumi/pkg/v3"
SDK = "github.com/pulumi/pulumi/sdk/v3"
VERSION_VARIABLE = f"{SDK}/go/common/version.Version"
LANGUAGE_HOST_VERSION = "v3.68.0"
# The providers whose Go modules are served; gitlab's are not.
BUILDABLE = ("docker", "openstack")


def environments() -> None:
    """The virtual environments, in step with the requirements files: the project's, and the policy pack's."""
    _environment(Step("Python environment"), VENV, REQUIREMENTS)
    _environment(Step("Policy pack's environment"), POLICY_VENV, [ROOT / "policy" / "requirements.txt"])


def _environment(step: Step, folder: Path, requirements: Sequence[Path]) -> None:
    python = folder / "bin" / "python"
    stamp = folder / "requirements.sha256"
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and _runs([str(python), "-c", ""]):
        step.done("up to date")
        return
    step.doing("installing the packages")
    if not _runs([str(python), "-m", "pip", "--version"]):
        try:
            venv.create(folder, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            hint = "on Debian and Ubuntu: apt install python3-venv"
            raise Failure(f"this Python cannot make virtual environments; {hint}") from None
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = _run([*install, *(f"--requirement={file}" for file in requirements)])
    if installed.returncode:
        raise Failure(f"pip could not install the packages: {last_line(installed.stderr)}")
    stamp.write_text(wanted)
    step.done("installed")


def pulumi(retry: bool) -> Path:
    """The folder of a Pulumi CLI that goes with the SDK: on PATH, from the official installer, or built from source."""
    wanted = pinned("pulumi")
    step = Step(f"Pulumi CLI {wanted}")
    on_path = shutil.which("pulumi")
    if on_path and _new_enough(on_path, wanted):
        step.done(f"{on_path} will do")
        return Path(on_path).parent
    kept = CACHE / wanted
    with _sole_builder(step):
        if (kept / "bin" / "pulumi").exists():
            step.done(f"kept in {kept}")
        else:
            how = _bring_pulumi(step, wanted, kept, retry)
            step.done(f"{how}, kept in {kept}")
    return kept / "bin"


def _bring_pulumi(step: Step, version: str, kept: Path, retry: bool) -> str:
    # A folder that is renamed when complete: an interrupted build leaves nothing that looks like one.
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="incomplete-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / version
        if _downloads_answer(retry):
            step.doing("downloading")
            install = "import sys; from pulumi.automation import PulumiCommand; PulumiCommand.install(root=sys.argv[1])"
            if _runs([str(VENV / "bin" / "python"), "-c", install, str(made)], timeout=DOWNLOAD_TIMEOUT_S):
                made.rename(kept)
                return "downloaded"
        if not shutil.which("go"):
            raise Failure(
                "Pulumi cannot be downloaded here, and Go is missing to build it: install Pulumi, or Go 1.25 on"
            )
        step.doing("cannot be downloaded here; building it from its Go modules, about 5 minutes on 2 cores")
        shutil.rmtree(made, ignore_errors=True)
        _build(version, made / "bin")
        made.rename(kept)
        return "built from its Go modules"


def _build(version: str, into: Path) -> None:
    """The CLI and its Python language host, from modules pinned by scripts/*/go.sum."""
    engine = ROOT / "scripts" / "engine"
    if f"{ENGINE} v{version}" not in (engine / "go.mod").read_text():
        raise Failure(f"scripts/engine/go.mod does not pin {ENGINE} v{version}, the version in requirements.txt")
    into.mkdir(parents=True)
    _go_build(engine, f"{ENGINE}/cmd/pulumi", f"{VERSION_VARIABLE}=v{version}", into)
    language_host = ROOT / "scripts" / "language-host"
    package = f"{SDK}/python/cmd/pulumi-language-python"
    _go_build(language_host, package, f"{VERSION_VARIABLE}={LANGUAGE_HOST_VERSION}", into)
    # What the language host starts is Python, and comes with the engine's SDK, not with the older host's.
    sources = Path(json.loads(_go(engine, "mod", "download", "-json", f"{SDK}@v{version}"))["Dir"]) / "python"
    for script in ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python"):
        target = into / Path(script).name
        shutil.copyfile(sources / script, target)
        target.chmod(0o755)


def _go_build(module: Path, package: str, variable: str, into: Path, *flags: str) -> None:
    """`into` is a folder that is there, or the executable; `variable` is NAME=VALUE in the program."""
    _go(module, "build", "-o", str(into), "-ldflags", f"-s -w -X {variable}", *flags, package)


def _go(module: Path, *arguments: str) -> str:
    # As GitLab Runner is built for the sandbox, so that what the two have in common is compiled once.
    flags = {"GOFLAGS": "-mod=readonly -buildvcs=false -trimpath", "GOWORK": "off", "CGO_ENABLED": "0"}
    result = _run(["go", *arguments], cwd=module, environment=flags)
    if result.returncode:
        raise Failure(f"`go {' '.join(arguments[:2])}` in {module.relative_to(ROOT)}: {last_line(result.stderr)}")
    return result.stdout


@dataclass(frozen=True)
class Plugin:
    """A provider's plugin in the version of its SDK."""

    name: str
    version: str

    @property
    def folder(self) -> Path:
        """Where it lies in a Pulumi home."""
        return Path("plugins") / f"resource-{self.name}-v{self.version}"

    def installed(self, home: Path) -> bool:
        """Whether it is there, complete: Pulumi marks a plugin with a file beside its folder while it unpacks it."""
        folder = home / self.folder
        return (folder / f"pulumi-resource-{self.name}").exists() and not folder.with_name(
            f"{folder.name}.partial"
        ).exists()


def plugins(cli: Path, retry: bool, build: bool) -> Path | None:
    """The official plugins (None), or a Pulumi home in which others take the place of those that are missing.

    The others are the official providers as far as they can be built, where that is wished for, and stand-ins.
    """
    step = Step("Provider plugins")
    wanted = [Plugin(name, pinned(f"pulumi-{name}")) for name in PROVIDERS]
    official = users_pulumi_home()
    missing = [
        plugin for plugin in wanted if not plugin.installed(official) and not _download(step, cli, plugin, retry)
    ]
    if not missing:
        step.done("official")
        return None
    built = [plugin for plugin in missing if build and plugin.name in BUILDABLE]
    stood_in = [plugin for plugin in missing if plugin not in built]
    folders = {plugin: official / plugin.folder for plugin in wanted if plugin not in missing}
    folders |= {plugin: _built_plugin(step, plugin) for plugin in built}
    home = VENV / "pulumi-home"
    _fill_home(cli, home, folders, stood_in)
    names = {
        "official": [plugin for plugin in wanted if plugin not in missing],
        "official, built from their Go modules": built,
        "the project's stand-ins": stood_in,
    }
    kinds = [f"{kind}: {', '.join(plugin.name for plugin in some)}" for kind, some in names.items() if some]
    step.done(f"{'; '.join(kinds)}. Downloads do not work here (`make setup OFFICIAL=1` tries again)")
    return home


def _built_plugin(step: Step, plugin: Plugin) -> Path:
    """The folder with an official provider's executable, built from the modules that scripts/plugins pins."""
    module = ROOT / "scripts" / "plugins"
    sources = sorted(file for file in module.rglob("*") if file.is_file())
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    kept = CACHE / f"resource-{plugin.name}-v{plugin.version}-{digest}"
    with _sole_builder(step):
        if not kept.exists():
            step.doing(f"building {plugin.name} from its Go modules, about 3 minutes on 2 cores")
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="incomplete-", ignore_cleanup_errors=True) as folder:
                made = Path(folder) / plugin.name
                made.mkdir()
                executable = made / f"pulumi-resource-{plugin.name}"
                version = f"main.version={plugin.version}"
                # Compose, which no resource here needs, is half of what there would be to compile.
                _go_build(module, f"./{plugin.name}", version, executable, "-tags", "no_compose")
                made.rename(kept)
    return kept


def _download(step: Step, cli: Path, plugin: Plugin, retry: bool) -> bool:
    failed = _FailureMark(plugin.folder.name)
    if (failed.fresh() and not retry) or not _downloads_answer(retry):
        return False
    step.doing(f"downloading {plugin.name} {plugin.version}")
    command = [str(cli / "pulumi"), "plugin", "install", "resource", plugin.name, f"v{plugin.version}"]
    if _runs(command, timeout=DOWNLOAD_TIMEOUT_S):
        return True
    failed.set()
    return False


def _fill_home(cli: Path, home: Path, folders: Mapping[Plugin, Path], stood_in: Sequence[Plugin]) -> None:
    """A Pulumi home with stand-ins for some plugins and links to the others; one that is right is left alone."""
    stand_ins = [f"{plugin.name}={plugin.version}" for plugin in stood_in]
    content = json.dumps([stand_ins, [str(folder) for folder in folders.values()]])
    stamp = home / "content.json"
    if stamp.exists() and stamp.read_text() == content:
        return
    shutil.rmtree(home, ignore_errors=True)
    (home / "plugins").mkdir(parents=True)
    for plugin, folder in folders.items():
        # Pulumi does not see a plugin's folder that is itself a link.
        (home / plugin.folder).mkdir()
        for file in folder.iterdir():
            (home / plugin.folder / file.name).symlink_to(file)
    command = [str(VENV / "bin" / "python"), "-m", "sandbox.plugins", "install", "--home", str(home), *stand_ins]
    installed = _run(command, environment=Toolchain(cli, home).environment())
    if installed.returncode:
        raise Failure(f"the stand-in plugins could not be installed: {last_line(installed.stderr)}")
    stamp.write_text(content)


class _FailureMark:
    """Remembers for a day that a download failed, so that not every `make` waits for it."""

    def __init__(self, key: str) -> None:
        self._file = CACHE / f"{key}.failed"

    def fresh(self) -> bool:
        return self._file.exists() and time.time() - self._file.stat().st_mtime < FAILURE_KEPT_S

    def set(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch()

    def clear(self) -> None:
        self._file.unlink(missing_ok=True)


@functools.cache
def _downloads_answer(retry: bool) -> bool:
    """Whether Pulumi's download site can be reached at all."""
    failed = _FailureMark("downloads")
    if failed.fresh() and not retry:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(DOWNLOADS, method="HEAD"), timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # Whatever it says, it is there.
    except OSError:
        failed.set()
        return False
    failed.clear()
    return True


@contextmanager
def _sole_builder(step: Step) -> Iterator[None]:
    """Keeps two checkouts from building the same thing at the same time: the second waits and finds it done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step.doing("waiting for another checkout that is bringing it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for remains in CACHE.glob("incomplete-*"):
            shutil.rmtree(remains, ignore_errors=True)
        yield


def _new_enough(command: str, wanted: str) -> bool:
    """Whether a CLI is of the SDK's minor version or a later one; patches do not matter."""
    found = re.match(r"v?(\d+)\.(\d+)\.", _run([command, "version"]).stdout)
    major, minor = (int(part) for part in wanted.split(".")[:2])
    return found is not None and int(found[1]) == major and int(found[2]) >= minor


def _run(
    command: Sequence[str], *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true", **(environment or {})}
    return subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, check=False)


def _runs(command: Sequence[str], *, timeout: float | None = None) -> bool:
    """Whether a command ends well and in time; what it started ends with it."""
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except FileNotFoundError:
        return False
    try:
        return process.wait(timeout) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(arguments: Sequence[str]) -> None:
    """Brings everything and keeps what was chosen for `scripts.stack`."""
    parser = argparse.ArgumentParser(prog="scripts.bootstrap", description=__doc__)
    parser.add_argument("--official", action="store_true", help="try again what could not be downloaded lately")
    parser.add_argument(
        "--plugins",
        choices=["stand-ins", "built"],
        default="stand-ins",
        help="what to take for official plugins that cannot be downloaded; built where their Go modules are served",
    )
    choice = parser.parse_args(arguments)
    environments()
    cli = pulumi(choice.official)
    Toolchain(cli, plugins(cli, choice.official, choice.plugins == "built")).save()


if __name__ == "__main__":
    with failures_in_one_line():
        main(sys.argv[1:])
