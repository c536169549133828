"""A double of GitLab's REST API: runners, their authentication, the job queue that they poll, and notes.

It answers as GitLab does (status codes, error bodies, token scopes, pagination), so that the official provider,
python-gitlab and GitLab Runner work against it. Beside the API it has control routes of the sandbox's own:

- `POST /sandbox/jobs` {project, tags, image, services, script, variables, protected, timeout}: queue a job;
- `GET /sandbox/jobs`, `GET /sandbox/jobs/:id`: status, runner and system_id; the single job also with its trace;
- `DELETE /sandbox/jobs`: cancel those that no runner has taken yet;
- `POST /sandbox/merge_requests` {project, title}: open a merge request, which has no commits.

Whoever serves the app keeps `/sandbox` to the loopback interface: jobs run code.
"""

from collections.abc import Callable

from aiohttp import web

from sandbox.gitlab.access import Tokens, seed
from sandbox.gitlab.http import API, Refusal
from sandbox.gitlab.instance import Instance
from sandbox.gitlab.issues import Issues
from sandbox.gitlab.jobs import Jobs
from sandbox.gitlab.notes import Notes
from sandbox.gitlab.runners import Runners
from sandbox.store import Store

__all__ = ["Tokens", "gitlab_app", "seed"]


# A note of a million characters, each of them written as an escape.
_MAXIMUM_REQUEST_BYTES = 16 << 20


def gitlab_app(store: Store, external_url: Callable[[], str]) -> web.Application:
    """The API over `store`, to be served at the root of its own port.

    Args:
        store: where all state is kept; call `seed` on it first.
        external_url: the instance's URL without a path, as jobs and users are to see it; asked at each request.
    """
    app = web.Application(client_max_size=_MAXIMUM_REQUEST_BYTES)
    instance = Instance(store, external_url)
    runners = Runners(store, instance)
    for part in (instance, runners, Jobs(store, instance, runners), Notes(store, instance), Issues(store, instance)):
        app.add_routes(part.routes())
    app.add_routes([web.route("*", f"{API}/{{rest:.*}}", _no_such_endpoint)])
    return app


async def _no_such_endpoint(_: web.Request) -> web.Response:
    raise Refusal(404, {"error": "404 Not Found"})
