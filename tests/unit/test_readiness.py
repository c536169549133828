"""What the program finds out about a host's Docker Engine."""

import pytest

from clients import ClientError
from clients.readiness import check_ipv6


@pytest.mark.parametrize("version", ["28.0.1", "28.5.2+dfsg4", "29.0.0", "100.0"])
def test_jobs_can_have_ipv6_with_a_new_engine(version: str) -> None:
    check_ipv6("Docker", version)


@pytest.mark.parametrize("version", ["28.0.0", "27.5.1", "26.1.5+dfsg1", "20.10.24+dfsg1"])
def test_not_with_an_old_one(version: str) -> None:
    with pytest.raises(ClientError) as error:
        check_ipv6("the Docker Engine of dev-1", version)
    assert str(error.value).startswith(f"host.ipv6: the Docker Engine of dev-1 is {version}, but GitLab Runner ")
    assert "28.0.1 or newer" in str(error.value)
