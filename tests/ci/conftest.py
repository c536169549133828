"""What the tests of the templates need."""

import shutil
import subprocess

import pytest

from tests.ci.pipeline import gitlab_ci_local


@pytest.fixture(scope="session", autouse=True)
def _gitlab_ci_local() -> None:
    """Installs gitlab-ci-local, where npm can."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, for gitlab-ci-local")
    try:
        gitlab_ci_local()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot install gitlab-ci-local: {error.stderr.strip().splitlines()[-1:]}")
