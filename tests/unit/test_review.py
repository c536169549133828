"""The preview comment, from plans that the engine printed for the sandbox's stack, cut to what is read of them."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from review import HostError
from review.__main__ import main
from review.assessment import Jobs, StackReview
from review.comment import MARKER, Report, render
from review.files import changed_files_of, files_of, runners_to_declare
from review.hosts import GitHubPullRequest, GitLabMergeRequest, MergeRequest, base_of, host_of
from review.issues import GitLabIssues
from review.markdown import code, diff, fence
from review.plan import UNKNOWN, Change, Plan, PlanError, Violation, read
from review.previews import preview_of, redacted
from review.stacks import GitError, Stacks, Touched, changed_files, merge_base, stacks_at, touched
from settings import KeyPair, ObjectStoreCache, OpenStackHost, Runner, S3Cache, Settings
from tests.unit.github import GitHubHandler, serving
from tests.unit.server import Answer
from tests.unit.server import serving as server_of_any_kind

PLANS = Path(__file__).parent / "plans"
NO_LIMIT = 10**9
HOST = OpenStackHost(
    kind="openstack",
    flavor="m1.small",
    image="debian-13",
    network="runners",
    floating_ip_pool="public",
    key_pair=KeyPair(name="me"),
    ssh_from=("127.0.0.0/8",),
)
APP = Runner(project=100, tags=("docker",), run_untagged=True)
TEAM = Runner(group=10, tags=("docker", "images"), builds="dind", protected=True)
SETTINGS = Settings(host=HOST, runners={"app": APP, "team": TEAM})


def text_of(name: str, stack: str = "team-dev") -> str:
    return (PLANS / f"{name}.json").read_text().replace("team-dev", stack)


def review(
    name: str, stack: str = "team-dev", before: Settings | None = SETTINGS, after: Settings | None = SETTINGS
) -> StackReview:
    return StackReview(stack, read(text_of(name, stack)), before=before, after=after)


def comment(*reviews: StackReview, limit: int = NO_LIMIT, **more: Any) -> str:
    return render(Report(reviews, **more), limit)


def warnings(found: StackReview) -> list[tuple[str, str]]:
    return [(warning.text, warning.subject) for warning in found.warnings]


def changed(settings: Settings, **host: Any) -> Settings:
    return settings.model_copy(update={"host": settings.host.model_copy(update=host)})


# The whole.


def test_the_comment_exactly() -> None:
    without_team = SETTINGS.model_copy(update={"runners": {"app": APP}})
    made = comment(
        review("machine", "web-prod", after=changed(SETTINGS, mtu=1400)),
        review("runner-removed", "web-dev", after=without_team),
        review("tags", "app-dev"),
        review("failing", "app-prod", after=None),
        review("same", "db-dev"),
        commit="0123456789abcdef0123456789abcdef01234567",
        removed=["old-dev"],
    )
    assert made == (PLANS / "comment.md").read_text()


def test_unchanged_stacks_are_one_line() -> None:
    made = comment(*(review("same", f"team-{number}") for number in range(12)))
    line = next(line for line in made.splitlines() if line.startswith("Nothing changes"))
    assert line.startswith("Nothing changes in `team-0`, `team-1`")
    assert line.endswith("and 4 more.")
    assert "<details>" not in made
    assert "|" not in made


def test_a_change_that_touches_no_stack_says_so() -> None:
    assert "This change touches no stack." in comment()


# What a plan means.


@pytest.mark.parametrize(
    ("name", "counts", "jobs"),
    [
        ("new", (26, 0, 0, 0), (Jobs.NOTHING, "")),
        ("same", (0, 0, 0, 0), (Jobs.NOTHING, "")),
        ("configuration", (0, 0, 1, 0), (Jobs.NOTHING, "")),
        ("tags", (0, 1, 0, 0), (Jobs.NOTHING, "")),
        ("ssh", (1, 1, 0, 0), (Jobs.NOTHING, "")),
        ("runner-added", (6, 0, 0, 0), (Jobs.NOTHING, "")),
        ("host-more", (16, 0, 0, 0), (Jobs.NOTHING, "")),
        ("runner-removed", (0, 0, 0, 6), (Jobs.FINISH_FIRST, "at most 1 h")),
        ("rotation", (0, 0, 3, 0), (Jobs.FINISH_FIRST, "at most 1 h")),
        ("manager-version", (0, 0, 8, 0), (Jobs.FINISH_FIRST, "at most 1 h")),
        ("machine", (0, 0, 14, 0), (Jobs.FINISH_FIRST, "at most 1 h")),
    ],
)
def test_what_is_counted_and_what_jobs_notice(name: str, counts: tuple[int, ...], jobs: tuple[Jobs, str]) -> None:
    found = review(name)
    assert tuple(found.counts.values()) == counts
    assert found.jobs == jobs


def without(plan: Plan, *types: str) -> StackReview:
    return StackReview("team-dev", Plan([change for change in plan.changes if change.type not in types]))


def test_a_bucket_is_no_runner_manager() -> None:
    urn = (
        "urn:pulumi:s::gitlab-runners::gitlab-runners:index:Cache$openstack:objectstorage/container:Container::s-cache"
    )
    step = {"op": "delete", "urn": urn, "oldState": {"inputs": {"name": "s-cache"}}}
    found = StackReview("s", read(json.dumps({"steps": [step]})))
    assert found.jobs == (Jobs.NOTHING, "")
    assert "**removed** bucket of the cache `s-cache`" in comment(found)


def test_jobs_may_die_where_nothing_waits_for_them() -> None:
    machine = without(read(text_of("machine")), "Drain")
    assert machine.jobs == (Jobs.MAY_DIE, "machine team-dev-1 goes without a drain")
    registration = without(read(text_of("rotation")), "JobsEnded")
    assert registration.jobs == (Jobs.MAY_DIE, "registration team-dev-app goes without waiting for its jobs")


def test_a_manager_without_a_grace_is_stopped_at_once() -> None:
    text = text_of("runner-removed").replace('"destroyGraceSeconds": 3600, ', "")
    assert StackReview("team-dev", read(text)).jobs == (Jobs.MAY_DIE, "manager team-dev-1-team is stopped at once")


@pytest.mark.parametrize(
    ("key", "what", "warning"),
    [
        ("imageId", "rebuilt", "a virtual machine is rebuilt in place: its disk is wiped"),
        ("flavorId", "restarted", "a virtual machine is restarted in place"),
    ],
)
def test_a_machine_changed_in_place_is_told_as_nova_does_it(key: str, what: str, warning: str) -> None:
    change = Change("update", "Instance", "team-dev-1", {key: "1"}, {key: "2"})
    found = StackReview("team-dev", Plan([change]))
    assert found.jobs == (Jobs.MAY_DIE, f"machine team-dev-1 is {what} in place")
    assert warnings(found) == [(warning, "team-dev-1")]


def test_a_replaced_machine_is_warned_of_with_the_reason() -> None:
    after = changed(SETTINGS, mtu=1400, flavor="m1.large", ssh_from=("127.0.0.0/16",))
    assert warnings(review("machine", after=after)) == [
        ("a virtual machine is replaced, with its caches and its address", "team-dev-1 (host.flavor, host.mtu)")
    ]


def test_registrations_that_go_are_warned_of() -> None:
    without_team = SETTINGS.model_copy(update={"runners": {"app": APP}})
    assert warnings(review("runner-removed", after=without_team)) == [
        ("a registration is removed: the runner is gone from GitLab", "team-dev-team")
    ]
    assert warnings(review("rotation")) == [
        ("a registration is replaced: the runner gets a new token and id", "team-dev-app")
    ]


def test_privileged_builds_are_warned_of_when_they_are_added() -> None:
    privileged = ("privileged builds are added, and who breaks out of one has the host", "team: dind")
    plain = SETTINGS.model_copy(update={"runners": {"app": APP, "team": Runner(group=10, tags=("docker",))}})
    assert warnings(review("configuration", before=plain)) == [privileged]
    assert warnings(review("configuration")) == []
    # A host more, and no runner more.
    assert warnings(review("host-more")) == []
    assert warnings(review("new")) == [privileged]


@pytest.mark.parametrize(
    ("allowed", "is_wider"),
    [(("127.0.0.0/8",), True), (("127.0.0.0/8", "198.51.0.0/16"), False), (("2001:db8::/32",), True)],
)
def test_ssh_is_warned_of_when_it_opens_wider(allowed: tuple[str, ...], is_wider: bool) -> None:
    found = warnings(review("ssh", before=changed(SETTINGS, ssh_from=allowed)))
    assert found == ([("SSH is opened to more addresses", "198.51.100.0/24")] if is_wider else [])


def test_metrics_are_not_ssh() -> None:
    rule = {"direction": "ingress", "remoteIpPrefix": "127.0.0.0/8"}
    plan = Plan([Change("create", "SecGroupRule", "team-dev-metrics-127.0.0.0/8", {}, rule)])
    found = StackReview("team-dev", plan, before=SETTINGS)
    assert warnings(found) == [("reading metrics is opened to more addresses", "127.0.0.0/8")]
    assert "**created** security group rule: metrics from `127.0.0.0/8`" in comment(found)


def test_a_narrower_rule_in_the_place_of_a_wider_one_is_no_warning() -> None:
    wide = {"direction": "ingress", "remoteIpPrefix": "192.0.2.0/24"}
    narrow = wide | {"remoteIpPrefix": "192.0.2.0/28"}
    changes = [Change("delete", "SecGroupRule", "a", wide, {}), Change("create", "SecGroupRule", "b", {}, narrow)]
    assert warnings(StackReview("team-dev", Plan(changes))) == []
    assert warnings(StackReview("team-dev", Plan(changes[1:]))) != []


def test_a_protected_stack_that_is_touched_is_warned_of() -> None:
    protected = SETTINGS.model_copy(update={"protect": True})
    assert warnings(review("tags", after=protected)) == [("this stack is protected (`protect: true`)", "")]
    # As the state has it, when the file says nothing any more.
    assert warnings(review("protected")) == [("this stack is protected (`protect: true`)", "")]
    assert warnings(review("same", after=protected)) == []


def test_a_failed_preview_tells_its_error_in_one_line() -> None:
    assert review("failing").failure == (
        "flavor m1.smal: does not exist in this cloud; did you mean m1.small or m1.large or m1.medium?"
    )
    # The engine's own words hold URNs of many lines' length.
    assert review("protected-removed").failure == (
        'Preview failed: resource "UserRunner team-dev-team" cannot be deleted'
    )


def test_an_engine_that_gives_no_plan_tells_why_on_the_other_channel() -> None:
    errors = "error: getting stack configuration: get stack secrets manager: incorrect passphrase\n"
    assert preview_of("", errors, 1) == (
        Plan(),
        "getting stack configuration: get stack secrets manager: incorrect passphrase",
    )


@pytest.mark.parametrize("text", ["", "no", "[]", '{"steps": 1}', '{"steps": [{"op": "create"}]}'])
def test_what_is_no_plan_is_said_in_one_line(text: str) -> None:
    with pytest.raises(PlanError, match=r"^the plan is not "):
        read(text)


# What policies say.

REFUSED = json.dumps({"diagnostics": [{"message": "error: preview failed\n", "severity": "error"}]})


def verdict() -> str:
    return (PLANS / "policies.jsonl").read_text()


def advised() -> str:
    return "".join(line for line in verdict().splitlines(keepends=True) if '"mandatory"' not in line)


def test_a_preview_that_policies_refuse_is_a_failed_one() -> None:
    found = StackReview("team-dev", *preview_of(REFUSED, "", 1, verdict()))
    assert found.failure is not None
    assert found.failure.startswith("policy flavor-allowed: flavor m1.large is none of m1.small, m1.medium. Choose")
    made = comment(found)
    warned, row, below = made.partition("| stack |")
    assert "❌ preview failed: `policy flavor-allowed: flavor m1.large" in row + below
    assert "preview failed\n" not in below.partition("```text")[2]
    # Alike ones once, with the names of all that they concern.
    assert warned.count("- **refused** by policy `flavor-allowed`") == 1
    assert "(`team-dev-1`, `team-dev-4`)" in warned
    assert (
        "- **refused** by policy `host-cap`: `this is machine 5 of the stack, and 4 is the most. Lower host.count` "
        "(`team-dev-5`)"
    ) in warned
    assert "- warning of policy `boot-image-by-id`: ``image debian-13 is a name, which" in warned
    # Why there is such a policy.
    assert "One stack with a typing error in host.count takes the quota of all the others." in below


def test_a_policy_that_only_advises_leaves_the_preview_as_it_is() -> None:
    found = StackReview("team-dev", *preview_of(text_of("tags"), "", 0, advised()))
    assert found.failure is None
    made = comment(found)
    assert "| `team-dev` |  | 1 |  |  | 🟢 notice nothing |" in made
    assert "- warning of policy `job-image-pinned`: `debian:13-slim can be another image tomorrow." in made
    assert "refused" not in made
    # The values that it looks at are not known yet.
    assert "- warning of policy `no-secret-in-user-data`" not in made
    assert "- `only the update can ask the policy no-secret-in-user-data`" in made


def test_a_stack_that_does_not_change_is_warned_of_too() -> None:
    stacks = [StackReview(name, *preview_of(text_of("same"), "", 0, advised())) for name in ("team-dev", "web-dev")]
    made = comment(*stacks)
    assert made.count("warning of policy `job-image-pinned`") == 1
    assert "Nothing changes in `team-dev`, `web-dev`." in made


def test_a_plugin_that_ends_with_a_refused_preview_is_no_error() -> None:
    ended = (
        "error: Detected that /plugins/pulumi-resource-docker exited prematurely. \n"
        "       This is *always* a bug in the provider. Please report the issue to the provider author.\n"
        "       To assist with debugging we have dumped the STDOUT and STDERR streams of the plugin:41539\n"
    )
    output = json.dumps({"diagnostics": [{"message": ended, "severity": "error"}, *json.loads(REFUSED)["diagnostics"]]})
    plan, error = preview_of(output, "", 1, verdict())
    assert (plan.errors, error) == ([], None)
    # Without a policy's word it is one.
    plan, _ = preview_of(output, "", 1)
    assert plan.errors[0] == "Detected that /plugins/pulumi-resource-docker exited prematurely."


def test_what_else_is_wrong_is_told_before_what_policies_say() -> None:
    found = StackReview("team-dev", *preview_of(text_of("failing"), "", 1, verdict()))
    assert found.failure == review("failing").failure


def test_a_verdict_that_cannot_be_read_is_no_good_one() -> None:
    for log in ('{"policyEvent":{}}', '{"policyEvent":', '"policyEvent"'):
        assert preview_of(text_of("same"), "", 0, log) == (Plan(), "the policies' verdict cannot be read")


def test_changed_properties_are_shown_before_and_after() -> None:
    made = comment(review("tags"))
    assert "- **updated** registration in GitLab `team-dev-app`\n  - `paused`: `false` → `true`\n" in made
    assert '  - `tagLists`: `["docker"]` → `["docker", "linux"]`' in made


def test_files_are_shown_as_differences() -> None:
    made = comment(review("machine"))
    assert "```diff\n--- a/etc/gitlab-runner/dind-daemon.json\n" in made
    assert '-  "mtu": 1450,\n+  "mtu": 1400,\n' in made


def with_files(found: StackReview) -> str:
    assert found.before is not None
    assert found.after is not None
    urls = ("https://gitlab.example", "https://gitlab.example")
    return comment(replace(found, files=changed_files_of(found.stack, found.before, found.after, urls)))


def changed_runners(**runners: Runner) -> Settings:
    return SETTINGS.model_copy(update={"runners": {**SETTINGS.runners, **runners}})


def test_files_that_are_secrets_in_the_plan_are_rendered_without_them() -> None:
    after = changed_runners(app=APP.model_copy(update={"limit": 1, "environment": {"PASSWORD": "[secret]"}}))
    made = with_files(review("configuration", after=after))
    assert "`/etc/gitlab-runner/config.toml` of `team-dev-1-app`:\n\n```diff\n" in made
    assert '-limit = 4\n-environment = []\n+limit = 1\n+environment = [\n+    "PASSWORD=[secret]",\n' in made
    assert "user_data" not in made


def test_files_that_change_alike_are_shown_once() -> None:
    made = with_files(review("machine", after=changed(SETTINGS, mtu=1400)))
    assert made.count("+network_mtu = 1400") == 1
    assert "`/etc/gitlab-runner/config.toml` of `team-dev-1-app`, `team-dev-1-team`:" in made
    assert "-network_mtu = <MTU of the network>" in made
    assert "+    needed=1400" in made
    # What the plan shows itself it knows better.
    assert '-  "mtu": 1450,\n+  "mtu": 1400,' in made


def test_only_files_that_may_differ_are_rendered() -> None:
    url = "https://gitlab.example"
    other = APP.model_copy(update={"limit": 1})
    both = {"app", "team"}
    assert runners_to_declare(SETTINGS, SETTINGS, (url, url)) == set()
    assert runners_to_declare(SETTINGS, changed_runners(app=other, web=APP), (url, url)) == {"app", "web"}
    assert runners_to_declare(SETTINGS, changed(SETTINGS, mtu=1400), (url, url)) == both
    assert runners_to_declare(SETTINGS, SETTINGS, (url, "https://other.example")) == both


def test_secrets_that_nobody_encrypted_are_in_no_file() -> None:
    own = Runner.model_validate({"token": "glrt-written-down"})
    cache = S3Cache.model_validate(
        {"kind": "s3", "server": "s3.example", "bucket": "caches", "accessKey": "AKIA", "secretKey": "written-down"}
    )
    settings = SETTINGS.model_copy(update={"runners": {"app": own}, "cache": cache})
    text = "".join(files_of("team-dev", settings, "https://gitlab.example").values())
    assert 'token = "[secret]"' in text
    assert "written-down" not in text


def test_a_runner_more_or_less_is_a_file_more_or_less() -> None:
    url = "https://gitlab.example"
    more = changed_runners(web=APP)
    assert changed_files_of("team-dev", SETTINGS, SETTINGS, (url, url)) == []
    (added,) = changed_files_of("team-dev", SETTINGS, more, (url, url))
    assert (added.resource, added.path, added.before) == ("team-dev-1-web-config", "/etc/gitlab-runner/config.toml", "")
    (removed,) = changed_files_of("team-dev", more, SETTINGS, (url, url))
    assert (removed.before, removed.after) == (added.after, "")
    other = SETTINGS.model_copy(update={"runners": {"web": APP}})
    assert len(changed_files_of("team-dev", SETTINGS, other, (url, url))) == 4


def test_a_cache_is_rendered_without_a_cloud_and_without_keys() -> None:
    url = "https://gitlab.example"
    cached = SETTINGS.model_copy(update={"cache": ObjectStoreCache(kind="openstack")})
    change, _ = changed_files_of("team-dev", SETTINGS, cached, (url, url))
    assert '\n[runners.cache]\nType = "s3"\n' in change.after
    assert 'BucketName = "gitlab-runners-team-dev-cache"' in change.after
    assert 'AccessKey = "<access key>"\nSecretKey = "<secret key>"' in change.after
    assert 'ServerAddress = "<S3 API of the cloud>"' in change.after


def test_long_values_are_cut() -> None:
    change = Change("update", "Keypair", "k", {"name": "a"}, {"name": "b" * 1000})
    line = next(line for line in comment(StackReview("s", Plan([change]))).splitlines() if "`name`" in line)
    assert line.endswith("b…`")
    assert len(line) < 200


# Secrets.


def test_of_a_secret_only_that_it_changes_is_told() -> None:
    made = comment(review("configuration"))
    assert "`uploads`: changes; it holds a secret" in made
    assert "[secret]" not in made


def test_no_output_and_no_secret_of_a_plan_is_shown() -> None:
    plan = json.loads(text_of("runner-removed"))
    for step in plan["steps"]:
        step["oldState"]["outputs"] = {"token": "glrt-should-not-be-here"}
        (step["oldState"].setdefault("inputs", {}))["__provider"] = "glrt-should-not-be-here"
    plan["config"] = {"gitlab:token": "glrt-should-not-be-here"}
    assert "should-not-be-here" not in comment(StackReview("team-dev", read(json.dumps(plan))))


def test_secrets_of_the_job_never_reach_the_report() -> None:
    environment = {
        "GITLAB_TOKEN": 'glpat-a"b\nc-secret',
        "OS_PASSWORD": "correct horse",
        "PULUMI_CONFIG_PASSPHRASE": "battery staple",
        "HOME": "/root/home",
    }
    text = 'with glpat-a"b\nc-secret, glpat-a\\"b\\nc-secret, correct horse and battery staple in /root/home'
    assert redacted(text, environment) == "with [secret], [secret], [secret] and [secret] in /root/home"


# Untrusted text.

_HOSTILE = [
    "@all",
    "/approve",
    "a\n/approve\nb",
    "<script>alert(1)</script>",
    "</details>",
    "```\n@all\n```",
    "``",
    "a `` b",
    "`",
    "| a | b |",
    "&amp;",
    "![x](https://example.com/x.png)",
    "\u202egnp.exe",
    "a\u2028b",
    "--> <!-- x",
    "$`x`$",
    "[secret]",
    "",
]


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        yield token
        yield from token.children or ()


@pytest.mark.parametrize("hostile", _HOSTILE, ids=range(len(_HOSTILE)))
def test_nothing_untrusted_is_more_than_shown(hostile: str) -> None:
    """Nothing outside of code but the program's own words; no HTML but its own."""
    label = [{"label": hostile, "value": hostile}]
    file = {"file": hostile, "content": f"one\n{hostile}\n"}
    changes = [
        Change("update", "UserRunner", hostile, {"tagLists": []}, {"tagLists": [hostile], hostile: hostile}),
        Change("update", hostile, hostile, {"labels": [], "x": hostile}, {"labels": label, "x": [hostile]}),
        Change("replace", "Container", "c", {"uploads": [file | {"content": "\n\n"}]}, {"uploads": [file]}),
        Change("replace", "Instance", hostile, {}, {}),
    ]
    advice = [Violation(hostile, False, hostile, hostile, [hostile])]
    runners = {"app": APP, "team": Runner(group=1, tags=("x",), description=hostile)}
    settings = SETTINGS.model_copy(update={"runners": runners})
    stacks = [
        StackReview("a", Plan(changes, [hostile], violations=advice), after=settings),
        StackReview("b", error=hostile),
        StackReview("d", Plan(violations=[Violation(hostile, True, hostile, hostile, [hostile])])),
        StackReview(hostile or "c", Plan(errors=[hostile])),
        StackReview(f"{hostile} unchanged"),
    ]
    made = comment(*stacks, removed=[hostile], commit=hostile)
    # GitLab looks for quick actions before it reads Markdown, and its notion of code is a rough one.
    assert not any(line.startswith("/") for line in made.splitlines())
    for token in tokens(made):
        if token.type == "text":
            assert not any(sign in token.content for sign in ("@", "<", "approve", "example.com", "\u202e", "alert"))
        elif token.type in ("html_block", "html_inline"):
            own = re.sub(r"<code>[^<>]*</code>", "", token.content.strip())
            assert own in (MARKER, "</details>") or re.fullmatch(r"<details><summary>: [a-z0-9, ]+</summary>", own)
        else:
            assert token.type not in ("image", "link_open")


@pytest.mark.parametrize("text", ["plain", "`", "``a``", "a`b", " ", "a|b", "x\\", "*a*"])
def test_code_is_read_back_as_it_was_written(text: str) -> None:
    (inline,) = (token for token in MarkdownIt().parse(f"- {code(text)}") if token.type == "inline")
    assert [(child.type, child.content) for child in inline.children or ()] == [("code_inline", text)]


def test_a_fence_cannot_be_closed_from_inside() -> None:
    text = "a\n```\n````\n~~~\nb"
    (token,) = MarkdownIt().parse(fence("text", text))
    assert (token.type, token.content) == ("fence", text + "\n")


def test_a_difference_never_begins_a_line_with_what_the_file_says() -> None:
    lines = diff("a\n", "a\n/approve\n", "file").splitlines()
    assert "+/approve" in lines


# Size.


@cache
def large(number: int) -> StackReview:
    """A stack of 20 runners, all of it new or replaced."""
    stack = f"team{number:02}-dev"
    one = [change for change in read(text_of("manager-version", stack)).changes if "-app" in change.name]
    changes = [
        Change(change.operation, change.type, change.name.replace("-app", f"-app{runner}"), change.old, change.new)
        for runner in range(20)
        for change in one
    ]
    new = [change for change in read(text_of("new", stack)).changes if change.type == "UserRunner"]
    changes += [
        Change(change.operation, change.type, f"{change.name}{runner}", change.old, change.new)
        for runner in range(20)
        for change in new
    ]
    runners = {f"app{runner}": APP for runner in range(20)}
    return StackReview(stack, Plan(changes), after=SETTINGS.model_copy(update={"runners": runners}))


@pytest.mark.parametrize("limit", [GitHubPullRequest.limit, GitLabMergeRequest.limit])
def test_fifty_stacks_of_twenty_runners_fit(limit: int) -> None:
    made = comment(*(large(number) for number in range(50)), limit=limit)
    assert len(made.encode()) <= limit
    assert all(f"| `team{number:02}-dev` |" in made for number in range(50))
    assert made.count("<details>") == made.count("</details>")


@pytest.mark.parametrize("limit", [20_000, 4_000, 600])
def test_what_does_not_fit_is_left_out_and_the_rest_stays_whole(limit: int) -> None:
    made = comment(*(large(number) for number in range(50)), limit=limit)
    assert len(made.encode()) <= limit
    assert made.startswith(MARKER)
    assert "Shortened to fit" in made
    assert made.count("<details>") == made.count("</details>")
    assert made.count("```") % 2 == 0


# Which stacks.


@pytest.fixture
def checkout(tmp_path: Path) -> Stacks:
    layers = ("environments/dev.yaml", "environments/prod.yaml", "teams/app.yaml", "teams/web.yaml", "defaults.yaml")
    for file in (*layers, "Pulumi.app-dev.yaml", "Pulumi.app-prod.yaml", "Pulumi.plain.yaml"):
        path = tmp_path / "stacks" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("config: {}\n")
    return Stacks(tmp_path)


@pytest.mark.parametrize(
    ("files", "stacks"),
    [
        (["stacks/Pulumi.app-dev.yaml"], ["app-dev"]),
        (["stacks/Pulumi.app-dev.yaml", "README.md"], ["app-dev"]),
        (["docs/how-to/x.md", "tests/unit/test_x.py", "README.md", "Makefile", "requirements-dev.txt"], []),
        (["ops/prometheus/alerts.yaml", "ci/pulumi.gitlab-ci.yml", ".github/workflows/up.yml"], []),
        (["stacks/defaults.yaml"], ["app-dev", "app-prod"]),
        (["stacks/environments/prod.yaml"], ["app-prod"]),
        (["stacks/teams/app.yaml"], ["app-dev", "app-prod"]),
        (["stacks/teams/web.yaml"], []),
        (["components/fleet.py"], ["app-dev", "app-prod", "plain"]),
        (["requirements.txt"], ["app-dev", "app-prod", "plain"]),
        (["__main__.py"], ["app-dev", "app-prod", "plain"]),
        (["a-new-package/module.py"], ["app-dev", "app-prod", "plain"]),
        (["stacks/README.md"], []),
        ([], []),
    ],
    ids=str,
)
def test_which_stacks_a_change_touches(checkout: Stacks, files: list[str], stacks: list[str]) -> None:
    assert touched(files, checkout, checkout) == Touched(stacks, [])


def test_a_stack_whose_file_goes_cannot_be_previewed_and_is_told(checkout: Stacks, tmp_path: Path) -> None:
    after = tmp_path / "after"
    (after / "stacks").mkdir(parents=True)
    found = touched(["stacks/Pulumi.app-dev.yaml", "stacks/Pulumi.app-prod.yaml"], checkout, Stacks(after))
    assert found == Touched([], ["app-dev", "app-prod", "plain"])
    assert "- `app-dev`: its file is removed, but what it made stays" in comment(removed=found.removed)


def test_a_stacks_settings_are_read_without_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.app-dev.yaml").write_text(
        json.dumps(
            {
                "config": {
                    "gitlab:token": {"secure": "v1:abc"},
                    "gitlab-runners:host": {"kind": "docker", "url": "unix:///var/run/docker.sock"},
                    "gitlab-runners:runners": {"app": {"token": {"secure": "v1:abc"}}},
                    "gitlab-runners:protect": True,
                }
            }
        )
    )
    found = Stacks(tmp_path).settings("app-dev")
    assert found is not None
    assert found.protect
    token = found.runners["app"].token
    assert token is not None
    assert token.get_secret_value() == "[secret]"


@pytest.mark.parametrize("content", ["", "[]", "config: []", "config: {gitlab-runners:host: 3}", "{", "1: 2"])
def test_a_stack_file_that_is_wrong_is_the_previews_to_tell(tmp_path: Path, content: str) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.app-dev.yaml").write_text(content)
    assert Stacks(tmp_path).settings("app-dev") is None


def test_a_change_begins_where_its_branch_forked_off(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.com", "-c", "init.defaultBranch=main"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    def commit(path: str, content: str) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
        git("add", "--all")
        git("commit", "--quiet", "--message=change")

    git("init", "--quiet")
    commit("stacks/Pulumi.app-dev.yaml", "config: {gitlab-runners:protect: true}")
    commit("stacks/Pulumi.größe-dev.yaml", "config: {}")
    git("switch", "--quiet", "--create=branch")
    git("mv", "stacks/Pulumi.größe-dev.yaml", "stacks/Pulumi.size-dev.yaml")
    commit("stacks/Pulumi.app-dev.yaml", "config: {}")
    git("switch", "--quiet", "main")
    commit("components/fleet.py", "not of this branch")
    git("switch", "--quiet", "branch")
    paths = ["app-dev", "größe-dev", "size-dev"]
    assert sorted(changed_files(tmp_path, "main")) == [f"stacks/Pulumi.{stack}.yaml" for stack in paths]
    with stacks_at(tmp_path, merge_base(tmp_path, "main")) as before:
        # No stack can be called größe-dev.
        assert before.names() == ["app-dev"]
        found = touched(changed_files(tmp_path, "main"), before, Stacks(tmp_path))
    assert found == Touched(["app-dev", "size-dev"], [])
    with pytest.raises(GitError, match="GIT_DEPTH"):
        changed_files(tmp_path, "nowhere")


# Where it goes.


def test_the_merge_request_is_the_one_of_the_pipeline() -> None:
    assert host_of({}) is None
    assert host_of({"GITHUB_REF": "refs/heads/main"}) is None
    gitlab = {"CI_MERGE_REQUEST_IID": "3", "CI_PROJECT_ID": "5", "CI_API_V4_URL": "https://gitlab.example/sub/api/v4"}
    with pytest.raises(HostError, match="REVIEW_TOKEN is empty"):
        host_of(gitlab)
    assert isinstance(host_of(gitlab | {"CI_JOB_TOKEN": "x"}), GitLabMergeRequest)
    github = {"GITHUB_REF": "refs/pull/7/merge", "GITHUB_REPOSITORY": "o/r"}
    with pytest.raises(HostError, match="GITHUB_TOKEN"):
        host_of(github)
    assert isinstance(host_of(github | {"GITHUB_TOKEN": "x"}), GitHubPullRequest)


def test_the_base_is_what_ci_says() -> None:
    assert base_of({"CI_MERGE_REQUEST_DIFF_BASE_SHA": "abc"}) == "abc"
    assert base_of({"GITHUB_BASE_REF": "main"}) == "origin/main"
    assert base_of({}) is None


class _GitHub(GitHubHandler):
    """Issue comments as GitHub's REST API has them (REST API docs, "Issue comments"), one a page."""

    comments: list[dict[str, Any]]
    requests: list[tuple[str, str]]

    def do_GET(self) -> None:
        if self.path == "/user":
            return self.user()
        page = int((re.search(r"[?&]page=(\d+)", self.path) or [0, 1])[1])
        path = self.path.partition("?")[0]
        link = f'<http://{self.headers["Host"]}{path}?page={page + 1}>; rel="next"'
        self.answer(200, self.comments[page - 1 : page], {"Link": link} if page < len(self.comments) else {})
        return None

    def do_POST(self) -> None:
        self.comments.append(
            {
                "id": 100 + len(self.comments),
                "html_url": "https://github.example/c",
                "user": {"login": self.login()},
                **self.body(),
            }
        )
        self.answer(201, self.comments[-1])

    def do_PATCH(self) -> None:
        (found,) = (each for each in self.comments if each["id"] == int(self.path.rpartition("/")[2]))
        found.update(self.body())
        self.answer(200, found)

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.requests.append((self.command, self.path.partition("?")[0]))
        super().answer(status, body, headers)


@pytest.fixture
def github() -> Iterator[tuple[str, type[_GitHub]]]:
    handler = type("Handler", (_GitHub,), {"comments": [], "requests": []})
    with serving(handler) as url:
        yield url, handler


@pytest.mark.parametrize("token", ["ghs_token", "ghp_token"])
def test_on_github_there_is_one_comment_that_is_updated(github: tuple[str, type[_GitHub]], token: str) -> None:
    url, handler = github
    person = {"login": "somebody"}
    # Who comments first, beginning with the marker, has written no comment of ours; nor has one who is gone.
    theirs = ["a person's", None, f"{MARKER}\na copy", MARKER, MARKER]
    users = [person, person, person, None, {"login": "other-app[bot]"}]
    handler.comments += [
        {"id": number, "body": body, "html_url": "", "user": user}
        for number, (body, user) in enumerate(zip(theirs, users, strict=True))
    ]
    request = GitHubPullRequest(url, "owner/name", 7, token)
    assert request.post(comment(), create=False) is None
    first, second = comment(review("tags")), comment(review("ssh"))
    assert request.post(first) == request.post(second) == request.post(second)
    assert [each["body"] for each in handler.comments] == [*theirs, second]
    changes = [each for each in handler.requests if each[0] != "GET"]
    assert changes == [
        ("POST", "/repos/owner/name/issues/7/comments"),
        ("PATCH", "/repos/owner/name/issues/comments/105"),
    ]


@pytest.mark.parametrize(("job", "asked"), [(True, "GET /api/v4/job"), (False, "GET /api/v4/user")])
def test_on_gitlab_a_comment_of_anybody_else_is_left_alone(job: bool, asked: str) -> None:
    """A job's token, should an instance let it write, acts for the user who started the job."""
    theirs = {"id": 1, "body": MARKER, "system": False, "author": {"id": 6, "username": "somebody"}}

    def answer(method: str, path: str) -> Answer:
        if "/notes" in path:
            return (200, {}, [theirs]) if method == "GET" else (201, {}, {"id": 2})
        return 200, {}, {"user": {"id": 5}} if job else {"id": 5}

    with server_of_any_kind() as server:
        server.answer = answer
        url = GitLabMergeRequest(MergeRequest(server.url, "1", 2), "token", job=job).post(comment())
    assert url is not None
    assert url.endswith("/notes/2")
    assert server.asked[0] == asked
    assert server.asked[-1] == "POST /api/v4/projects/1/merge_requests/2/notes"


def test_on_gitlab_the_token_follows_nobody_elsewhere() -> None:
    with server_of_any_kind() as server, server_of_any_kind() as stranger:
        server.answer = lambda _, path: (302, {"Location": f"{stranger.url}{path}"}, {})
        with pytest.raises(HostError, match="which gets no credentials"):
            GitLabMergeRequest(MergeRequest(server.url, "1", 2), "token", job=False).post(comment())
        with pytest.raises(HostError, match="which gets no credentials"):
            GitLabIssues(server.url, "1", "token").post("x", is_open=True)
    assert stranger.asked == []


def test_github_that_refuses_is_told_in_one_line(github: tuple[str, type[_GitHub]]) -> None:
    with pytest.raises(HostError, match=r"HTTP 403\): the job needs `permissions: pull-requests: write`"):
        GitHubPullRequest(github[0], "owner/name", 7, "wrong").post(comment())
    with pytest.raises(HostError, match="GitHub cannot be reached"):
        GitHubPullRequest("http://127.0.0.1:9", "owner/name", 7, "ghs_token").post(comment())


# The command.


def test_the_command_takes_plans_that_were_made_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI_MERGE_REQUEST_IID", "GITHUB_REF", "CI_MERGE_REQUEST_DIFF_BASE_SHA", "GITHUB_BASE_REF"):
        monkeypatch.delenv(name, raising=False)
    report = tmp_path / "preview.md"
    arguments = [f"--output={report}", f"--plan=team-dev={PLANS / 'tags.json'}"]
    assert main(arguments) == 0
    assert "| `team-dev` |  | 1 |  |  | 🟢 notice nothing |" in report.read_text()
    assert report.read_text() in capsys.readouterr().out
    assert main([*arguments, f"--plan=team-prod={PLANS / 'failing.json'}"]) == 1
    assert main([*arguments, f"--plan=team-prod={tmp_path / 'none.json'}"]) == 1
    assert "none.json cannot be read" in report.read_text()


def test_every_option_is_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--json"}
    page = (Path(__file__).parents[2] / "docs" / "reference" / "preview-comment.md").read_text()
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE))


def test_what_only_the_update_will_tell_is_not_shown_as_a_number() -> None:
    assert UNKNOWN not in comment(review("new"), review("machine", "b"), review("ssh", "c"), review("host-more", "d"))
