"""promtool, from Debian's package of Prometheus."""

from pathlib import Path

import pytest

from sandbox.packages import PackageError, required_release, unpacked


def promtool() -> Path:
    """The program; skips the test on a machine that cannot have it."""
    try:
        release = required_release()
        root = unpacked("prometheus", release, [f"prometheus/{release}"], "promtool", print)
    except PackageError as error:
        pytest.skip(str(error))
    return root / "usr/bin/promtool"
