"""Runs a Pulumi program up to its first resource, and ends there: `python -m bench.start PROGRAM PROJECT STACK`.

The stack's configuration is taken from PULUMI_CONFIG, as under the engine.
"""

import asyncio
import os
import runpy
import sys

import pulumi
from pulumi.runtime.settings import Settings, configure


def _end(*_arguments: object, **_options: object) -> None:
    os._exit(0)


async def main(program: str, project: str, stack: str) -> None:
    """Ends the process with 0 at the first resource; returns when there was none."""
    configure(Settings(project=project, stack=stack, organization="organization", dry_run=True))
    pulumi.Resource.__init__ = _end  # type: ignore[method-assign]
    sys.path.insert(0, program)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    sys.exit(f"{sys.argv[1]} declares nothing")
