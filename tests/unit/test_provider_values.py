"""What the providers' configuration says is read as the providers read it."""

from collections.abc import Callable
from typing import Any

import pulumi
import pytest

from clients import ClientError
from clients.gitlab import GitLab
from clients.openstack import connect
from components.openstack_provider import openstack_provider
from components.registration import gitlab_provider


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "t", "T", "1"])
def test_gitlabs_certificate_is_not_checked_where_the_provider_would_not(text: str) -> None:
    assert GitLab("https://gitlab.example", {"token": "x", "insecure": text}, {})._client.ssl_verify is False


@pytest.mark.parametrize("text", ["false", "False", "0", "F"])
def test_it_is_where_the_provider_would(text: str) -> None:
    config = {"token": "x", "insecure": text, "cacertFile": "ca.pem"}
    assert GitLab("https://gitlab.example", config, {})._client.ssl_verify == "ca.pem"


Call = Callable[[], Any]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: GitLab("https://x", {"token": "x", "insecure": "yes"}, {}), "gitlab:insecure: must be true or false"),
        (lambda: connect({"insecure": "yes"}), "openstack:insecure: must be true or false"),
        (lambda: provider(gitlab_provider, insecure="yes"), "gitlab:insecure: must be true or false"),
        (lambda: provider(gitlab_provider, retries="-1"), "gitlab:retries: must be a whole number"),
        (lambda: provider(gitlab_provider, headers="x"), "gitlab:headers: must be a map"),
        (lambda: provider(openstack_provider, insecure="maybe"), "openstack:insecure: must be true or false"),
        (lambda: provider(openstack_provider, maxRetries="two"), "openstack:maxRetries: must be a whole number"),
        (lambda: provider(openstack_provider, endpointOverrides="[]"), "openstack:endpointOverrides: must be a map"),
    ],
)
def test_a_value_that_is_none_gets_one_line(call: Call, told: str) -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert str(caught.value) == told


def provider(make: Callable[..., Any], **config: str) -> Any:
    return make("provider", config, pulumi.ResourceOptions())
