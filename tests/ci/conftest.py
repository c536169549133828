"""What the tests of the templates need."""

import pytest

from tests.ci.pipeline import gitlab_ci_local


@pytest.fixture(scope="session", autouse=True)
def _gitlab_ci_local() -> None:
    """Installs gitlab-ci-local, where npm can."""
    gitlab_ci_local()
