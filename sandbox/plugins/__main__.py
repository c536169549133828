"""`python -m sandbox.plugins install [--pulumi PULUMI] [--home HOME] [NAME=VERSION ...]`, `... remove [--home HOME]`.

Without names, all three are installed, in the versions of the installed Python SDKs.
"""

import argparse
import os
import subprocess
from pathlib import Path

from .install import PLUGINS, install, remove, versions


def main() -> None:
    """Say what is done in one line a plugin."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.plugins", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--home", type=Path, default=Path(os.environ.get("PULUMI_HOME", "~/.pulumi")).expanduser(), help="PULUMI_HOME"
    )
    installing = actions.add_parser("install", parents=[home], help="install the stand-ins")
    installing.add_argument("--pulumi", type=Path, default=Path("pulumi"), help="the Pulumi CLI")
    installing.add_argument(
        "plugins", nargs="*", metavar="NAME=VERSION", help="what to install; all where none is given"
    )
    actions.add_parser("remove", parents=[home], help="remove the stand-ins")
    arguments = parser.parse_args()
    if arguments.action == "install":
        plugins = dict(plugin.split("=", 1) for plugin in arguments.plugins) or versions()
        if unknown := sorted(plugins.keys() - set(PLUGINS)):
            parser.error(f"there is no stand-in for {', '.join(unknown)}; there are {', '.join(PLUGINS)}")
        try:
            outcomes = install(arguments.pulumi, arguments.home, plugins)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{error}: {error.stderr.strip()}") from error
        for name, outcome in outcomes.items():
            print(f"{name}: {outcome}")
    else:
        for name in remove(arguments.home):
            print(f"{name}: removed")


if __name__ == "__main__":
    main()
