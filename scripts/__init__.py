"""What `make` runs: the tools that the project brings, and the commands on a stack."""

import sys

OLDEST_PYTHON = (3, 11)

if sys.version_info < OLDEST_PYTHON:
    sys.exit(f"error: Python 3.11 or newer is needed, and {sys.executable} is older: make PYTHON=python3.12 ...")
