"""A runner's registration in GitLab and its authentication token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pulumi
import pulumi_gitlab as gitlab

from clients import ClientError
from clients.provider_values import flag, number, table
from clients.threads import in_thread
from components.jobs_ended import JobsEnded, JobsEndedArgs
from components.leftovers import Leftovers
from settings import Runner

# Beyond the grace: the last poll.
_DELETE_MARGIN_SECONDS = 300


@dataclass(frozen=True)
class RegistrationArgs:
    """`key` is the runner's in the stack file. `description` is shown in GitLab; it also finds what an interrupted
    update registered.

    `grace` is how long in seconds the jobs of a registration may keep it, `protect` keeps it from being removed or
    replaced. `pages` is the URL below which its owner's runners have their pages, None where that is unknown.
    `token_expiry` looks up when the token of a runner, given by its id, expires. `provider` and `token_expiry` are not
    used for a runner with a token of its own: `own_token_expiry` is when that one expires. `shared` is what the stack's
    layers say of the gitlab provider.
    """

    runner: Runner
    key: str
    description: str
    pages: str | None
    grace: int
    protect: bool
    leftovers: Leftovers
    provider: gitlab.Provider | None
    token_expiry: Callable[[int], datetime | None] | None = None
    own_token_expiry: datetime | None = None
    shared: Mapping[str, str] | None = None


class Registration(pulumi.ComponentResource):
    """A runner in GitLab; for a runner with a token of its own, only that token."""

    token: pulumi.Output[str]
    """Authentication token; a secret."""
    runner_id: pulumi.Output[int | None]
    page: pulumi.Output[str | None]
    """URL of the runner's page; None where the token may not read the path that it needs."""
    token_expiry: pulumi.Output[datetime | None]
    """When the token expires; None for never, and where that is not known."""

    def __init__(self, name: str, args: RegistrationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        runner, scope = args.runner, args.runner.scope
        # For policies: else it stands in config.toml alone, which no preview knows before there is a token.
        seen = {"scope": scope, "builds": runner.builds, "image": runner.image}
        super().__init__("gitlab-runners:gitlab:Registration", name, seen, opts)
        if scope is None:
            assert runner.token is not None
            self.token = pulumi.Output.secret(runner.token.get_secret_value())
            self.runner_id = pulumi.Output.from_input(None)
            self.page = pulumi.Output.from_input(None)
            _warn_of(args.own_token_expiry, args, "make another runner in GitLab and set token to the one that it gets")
            self.token_expiry = pulumi.Output.from_input(args.own_token_expiry)
        else:
            # Every field is written: one that is left out keeps what GitLab has.
            registered = gitlab.UserRunner(
                name,
                runner_type=scope,
                project_id=runner.project,
                group_id=runner.group,
                description=args.description,
                tag_lists=list(runner.tags),
                untagged=runner.run_untagged,
                locked=runner.locked and scope == "project_type",
                access_level="ref_protected" if runner.protected else "not_protected",
                paused=runner.paused,
                maximum_timeout=runner.maximum_timeout,
                maintenance_note=runner.maintenance_note,
                opts=args.leftovers.before_create(
                    self,
                    provider=args.provider,
                    replacement_trigger=str(runner.rotation or ""),
                    protect=args.protect,
                ),
            )
            JobsEnded(
                name,
                JobsEndedArgs(registered.id, args.grace, args.shared),
                opts=pulumi.ResourceOptions(
                    parent=self, custom_timeouts=pulumi.CustomTimeouts(delete=f"{args.grace + _DELETE_MARGIN_SECONDS}s")
                ),
            )
            self.token = pulumi.Output.secret(registered.token)
            self.runner_id = registered.id.apply(int)
            self.page = registered.id.apply(lambda id_: args.pages and f"{args.pages}/{id_}")
            self.token_expiry = registered.id.apply(lambda id_: self._look_at_expiry(args, int(id_)))
        self.register_outputs({"page": self.page})

    async def _look_at_expiry(self, args: RegistrationArgs, runner_id: int) -> datetime | None:
        if args.token_expiry is None:
            return None
        try:
            expiry = await in_thread(args.token_expiry, runner_id)
        except ClientError as error:
            pulumi.log.warn(f"{args.key}: cannot tell when its token expires: {error}")
            return None
        _warn_of(
            expiry,
            args,
            "change rotation (to today's date, for instance) and bring the stack up: it gets a new one",
        )
        return expiry


def _warn_of(expiry: datetime | None, args: RegistrationArgs, remedy: str) -> None:
    if expiry is not None and expiry - datetime.now(UTC) < timedelta(days=args.runner.expiry_warning_days):
        ends = "expires" if expiry > datetime.now(UTC) else "has expired"
        pulumi.log.warn(
            f"{args.key}: its token {ends} on {expiry:%Y-%m-%d at %H:%M} UTC, and with it no job is taken; {remedy}"
        )


def gitlab_provider(name: str, config: Mapping[str, str], opts: pulumi.ResourceOptions) -> gitlab.Provider:
    """The gitlab provider from its own configuration (`config`, without the namespace) and environment variables.

    It is explicit for one setting: the provider's own check reads the current user, which a token that may only create
    and manage runners must not do. The program has checked the token before.
    """
    token = config.get("token")
    return gitlab.Provider(
        name,
        early_auth_check=False,
        base_url=config.get("baseUrl"),
        token=pulumi.Output.secret(token) if token is not None else None,
        cacert_file=config.get("cacertFile"),
        client_cert=config.get("clientCert"),
        client_key=config.get("clientKey"),
        insecure=flag("gitlab:insecure", config["insecure"]) if "insecure" in config else None,
        headers=table("gitlab:headers", config["headers"]) if "headers" in config else None,
        retries=number("gitlab:retries", config["retries"]) if "retries" in config else None,
        opts=opts,
    )
