"""GitLab runners in Docker on OpenStack: the stack file's settings, declared as resources."""

import gc

# What is imported stays, all of it: the search for garbage in it would be a sixth of the time that it takes to load.
gc.disable()

import asyncio
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pulumi
from pulumi.runtime.config import is_config_secret

from clients import ClientError
from clients.doubles import check_no_doubles
from clients.gitlab import GITLAB_COM, GitLab, TokensUnknown, instance_url, token_expiries
from clients.lookups import look_up
from clients.lost import check_nothing_lost
from clients.managers import Engine
from clients.openstack import Catalogue, connect
from clients.quotas import check_quotas
from clients.readiness import engine_ready
from clients.remnants import Place, find
from clients.state import State, StateUnknown, backend, exported
from components.abort import ABORT_JOBS, aborts_jobs
from components.docker_connection import options_for
from components.fleet import Fleet, FleetArgs, Shared
from components.leftovers import Leftovers
from renderers.drain import STACK_LABEL
from settings import DockerHost, OpenStackHost, Settings, SettingsError, effective, in_namespace, load

gc.freeze()
gc.enable()

# The language host takes this status as: the user has been told.
USER_WAS_TOLD = 32


def main() -> Fleet:
    """Declares the stack; what is wrong with it is said before the first resource."""
    stack = pulumi.get_stack()
    state = State(exported(f"{pulumi.get_organization()}/{pulumi.get_project()}/{stack}")).begin()
    own = {key: str(value) for key, value in pulumi.runtime.config.get_config_env().items()}
    layers = effective(stack, own, encrypted={key for key in own if is_config_secret(key)})
    config = layers.config
    settings = load(stack, config, layers)
    for line in settings.warnings:
        pulumi.log.warn(line)
    if aborts_jobs(stack, os.environ):
        pulumi.log.warn(f"{ABORT_JOBS}={stack}: jobs of managers that go are aborted, not waited for")
    providers = {name: in_namespace(name, config) for name in ("gitlab", "openstack")}
    shared = None
    if layers.owner is not None:
        said = {name: in_namespace(name, layers.shared_config) for name in providers}
        shared = Shared(layers.owner, providers["openstack"], **said)
    default = GITLAB_COM if layers.owner is None else None
    gitlab = None
    if any(runner.scope is not None for runner in settings.runners.values()):
        url = instance_url(providers["gitlab"], os.environ, default)
        gitlab = GitLab(url, providers["gitlab"], os.environ)
        gitlab.check_token()
    else:
        url = instance_url(providers["gitlab"], os.environ, settings.gitlab_url or default)
    own_tokens = _own_tokens(settings, providers["gitlab"], settings.gitlab_url or url)
    host = settings.host
    stopped: set[str] = set()
    if isinstance(host, DockerHost):
        # In a thread: the program itself runs inside an event loop.
        with ThreadPoolExecutor() as pool:
            stopped = pool.submit(asyncio.run, _look_at(host, stack, state)).result()
    catalogue = Catalogue(lambda: connect(providers["openstack"]))
    lookups = look_up(stack, settings, catalogue, gitlab, preview=pulumi.runtime.is_dry_run())
    if isinstance(host, OpenStackHost) and catalogue.is_connected:
        try:
            check_no_doubles(pulumi.get_project(), stack, catalogue, state, backend)
        except StateUnknown as error:
            pulumi.log.warn(f"{error}; what an interrupted update may have left is not removed")
        else:
            there = {server.id for server in catalogue.servers(stack)}
            check_nothing_lost(stack, catalogue.connection, state.resources, there)
        for line in check_quotas(stack, host, lookups, catalogue):
            pulumi.log.warn(line)
    fleet = Fleet(
        stack,
        FleetArgs(
            project=pulumi.get_project(),
            stack=stack,
            settings=settings,
            lookups=lookups,
            leftovers=Leftovers(catalogue, gitlab, state),
            state=state,
            gitlab_config=providers["gitlab"],
            gitlab_url=settings.gitlab_url or url,
            token_expiry=gitlab.token_expiry if gitlab is not None else None,
            own_tokens=own_tokens,
            stopped=stopped,
            shared=shared,
        ),
    )
    pulumi.export("hosts", fleet.hosts)
    pulumi.export("runners", fleet.runners)
    if fleet.prometheus_targets is not None:
        pulumi.export("prometheusTargets", fleet.prometheus_targets)
    return fleet


async def _look_at(host: DockerHost, stack: str, state: State) -> set[str]:
    """Ids of the stack's managers on an existing engine that do not run, once the engine answers.

    Refuses an engine that cannot do what is wanted of it, or has another's things of this stack's name.
    """
    options = options_for(host.ssh, host.host_key)
    await engine_ready(host, options, pulumi.log.info)
    engine = Engine(host.url, options, host.cert_path)
    try:
        await find(Place(stack, "", engine), state, backend)
    except StateUnknown as error:
        # An update says so before the first thing that it makes there.
        if pulumi.runtime.is_dry_run():
            pulumi.log.warn(f"{error}; whose containers run at {host.url} is not known")
    return await engine.stopped({STACK_LABEL: stack})


def _own_tokens(settings: Settings, config: Mapping[str, str], url: str) -> Mapping[str, datetime | None]:
    """When the tokens expire that runners were given. Where GitLab does not tell, all else works without it."""
    tokens = {name: each.token.get_secret_value() for name, each in settings.runners.items() if each.token is not None}
    try:
        return token_expiries(instance_url(config, os.environ, url), config, tokens) if tokens else {}
    except TokensUnknown as error:
        pulumi.log.warn(f"cannot tell when the tokens of {', '.join(tokens)} expire: {error}")
        return {}


try:
    # The SDK waits as well, but whenever something is there it begins anew with all that is not: for many resources
    # that takes longer than all the rest.
    pulumi.run(main().settled)
except (SettingsError, ClientError) as error:
    pulumi.log.error(str(error))
    sys.exit(USER_WAS_TOLD)
