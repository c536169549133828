"""Which Pulumi CLI and which plugins this checkout uses: `make setup` chooses them, everything else reads them here."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from scripts.console import Failure

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
POLICY_VENV = VENV / "policy"
"""The policy pack's own, which policy/PulumiPolicy.yaml names."""
PROVIDERS = ("docker", "gitlab", "openstack")

_CHOICE = VENV / "toolchain.json"


def pinned(package: str) -> str:
    """The version of a package in requirements.txt, which is where every version of a tool comes from."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    if found is None:
        raise Failure(f"requirements.txt does not pin {package}")
    return found[1]


def users_pulumi_home() -> Path:
    """Pulumi's folder of this user: the plugins and logins of all their projects."""
    return Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")


@dataclass(frozen=True)
class Toolchain:
    """The folder of the Pulumi CLI, and the Pulumi home with plugins that were not downloaded; None where all were."""

    bin: Path
    home: Path | None

    def save(self) -> None:
        """Keeps the choice for `load`."""
        _CHOICE.write_text(json.dumps({"bin": str(self.bin), "home": self.home and str(self.home)}))

    @staticmethod
    def load() -> "Toolchain":
        """The choice of the last `make setup`; Failure when there was none."""
        if not _CHOICE.exists():
            raise Failure("the tools are not set up yet: run `make setup`")
        choice = json.loads(_CHOICE.read_text())
        return Toolchain(Path(choice["bin"]), choice["home"] and Path(choice["home"]))

    def environment(self) -> dict[str, str]:
        """What to add to the environment of `pulumi`.

        Downloaded plugins lie in the user's own Pulumi home, as in any project. The others have a home to themselves,
        so that no other project of the user ever meets them; the user's logins to state backends count there too.
        """
        # The language host that is built here does not know Pulumi.yaml's `virtualenv`: it takes PATH's first Python.
        path = os.pathsep.join([str(VENV / "bin"), str(self.bin), os.environ["PATH"]])
        environment = {"PATH": path, "VIRTUAL_ENV": str(VENV), "PULUMI_SKIP_UPDATE_CHECK": "true"}
        # Nor does it start a policy pack. A host that knows `virtualenv` makes no use of this.
        environment["PULUMI_PYTHON_CMD"] = str(ROOT / "scripts" / "language-host" / "python")
        if self.home:
            environment["PULUMI_HOME"] = str(self.home)
            environment["PULUMI_CREDENTIALS_PATH"] = os.environ.get("PULUMI_CREDENTIALS_PATH", str(users_pulumi_home()))
            environment["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"
        return environment
