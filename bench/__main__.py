"""Prints a table of what the program costs, each row measured side by side in one run: `make bench`.

It ends with 1 when a result is wrong, never for the time that something took.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, median
from tempfile import TemporaryDirectory

from bench.stacks import FOLDERS, Cost, Size, Stack, Which, Wrong, in_turn
from tests.engine.harness import ROOT, Sandbox

OVERHEAD = 1.10
# One for the program and the provider together; another when the first one ended between them.
CONNECTIONS = 2
# The registration, the provider's look at it, and when its token expires, which the provider does not tell.
GITLAB_CALLS_PER_RUNNER = 3


@dataclass(frozen=True)
class Row:
    """One line of the table: the program's figure, the one beside it, their ratio, and what the ratio should be."""

    what: str
    program: float
    other: float
    ratio: float
    target: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is measured: runs and sizes. A time is only worth something with several runs."""

    previews: dict[Size, int]
    ups: dict[Size, int]
    starts: int
    growth: Sequence[Sequence[Size]] = ()
    rollout: tuple[int, int] | None = None


SMALL = Plan(previews={Size(1): 1, Size(10): 1}, ups={Size(1): 1, Size(10): 1}, starts=3)
WHOLE = Plan(
    previews={Size(1): 3, Size(10): 3, Size(100): 3, Size(400): 3},
    # The sandbox's hosts share one engine, and this machine's starts no more than some three hundred managers.
    ups={Size(1): 3, Size(10): 3, Size(100): 3},
    starts=5,
    growth=[[Size(runners, hosts, spread=hosts > 1) for runners in (10, 100, 400)] for hosts in (1, 4, 20)],
    rollout=(1, 20),
)


class Bench:
    """The rows, on one sandbox."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox = sandbox
        self._folder = folder

    def rows(self, plan: Plan) -> Iterator[Row]:
        """Measures all that is planned. Raises Wrong."""
        self._same_resources(Size(2, 2))
        yield from self._start(plan.starts)
        previews: dict[Size, list[tuple[Cost, Cost]]] = {}
        for size, runs in plan.previews.items():
            previews[size] = self._previews(size, runs)
            yield from _overhead(f"preview, {size}", previews[size])
        self._look_ups_do_not_grow({size: pairs[0][0] for size, pairs in previews.items()})
        ups: dict[Size, list[tuple[Cost, Cost]]] = {}
        for size, runs in plan.ups.items():
            ups[size] = self._ups(size, runs)
            yield from _overhead(f"up, {size}", ups[size])
        yield from _calls(ups)
        for sizes in plan.growth:
            yield from self._growth(sizes)
        if plan.rollout is not None:
            yield from self._rollout(*plan.rollout)

    def _stack(self, size: Size) -> Stack:
        return Stack(self._sandbox, self._folder, size)

    def _same_resources(self, size: Size) -> None:
        stack = self._stack(size)
        ours, bare = stack.plan("program"), stack.plan("bare")
        for name in sorted(ours.keys() | bare.keys()):
            if ours.get(name) != bare.get(name):
                raise Wrong(f"the bare program declares another {name}:\n{ours.get(name)}\n{bare.get(name)}")

    def _previews(self, size: Size, runs: int) -> list[tuple[Cost, Cost]]:
        stack = self._stack(size)
        return in_turn(runs, stack.preview)

    def _ups(self, size: Size, runs: int) -> list[tuple[Cost, Cost]]:
        def up(which: Which) -> Cost:
            stack = self._stack(size)
            try:
                return stack.up(which)
            finally:
                stack.clear()

        return in_turn(runs, up)

    def _start(self, runs: int) -> Iterator[Row]:
        stack = self._stack(Size(1))
        names = (stack.project.stack, "gitlab-runners")
        config = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in stack.project.config.items()
        }
        environment = stack.project.environment | {"PULUMI_CONFIG": json.dumps(config)}

        def seconds(*arguments: str) -> float:
            begun = time.monotonic()
            done = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Wrong(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
            return time.monotonic() - begun

        taken = [
            (
                seconds("-c", "import pulumi"),
                *(seconds("-m", "bench.start", str(FOLDERS[which]), names[1], names[0]) for which in FOLDERS),
            )
            for _ in range(runs)
        ]
        pulumi, program, bare = (median(times) for times in zip(*taken, strict=True))
        yield Row("start to the first resource, s, against `import pulumi`", program, pulumi, program / pulumi)
        yield Row("start to the first resource, s, against the bare program", program, bare, program / bare)

    @staticmethod
    def _look_ups_do_not_grow(costs: dict[Size, Cost]) -> None:
        counts = {size: (cost.calls["openstack"], cost.calls["gitlab"]) for size, cost in costs.items()}
        if len(set(counts.values())) > 1:
            raise Wrong(f"a preview looks up the same thing again for more runners: {counts} OpenStack, GitLab calls")

    def _growth(self, sizes: Sequence[Size]) -> Iterator[Row]:
        costs = [self._stack(size).preview("program") for size in sizes]
        counts = [math.log(size.runners) for size in sizes]
        span = f"{sizes[0].runners} to {sizes[-1]}"
        for what, figures in (
            ("processor time", [cost.cpu for cost in costs]),
            ("memory", [cost.memory for cost in costs]),
        ):
            slope = linear_regression(counts, [math.log(figure) for figure in figures]).slope
            # Per runner, beyond the first: below the smallest size nearly all is the same for any stack.
            each = [
                (figures[index + 1] - figures[index]) / (sizes[index + 1].runners - sizes[index].runners)
                for index in range(len(sizes) - 1)
            ]
            yield Row(f"growth of {what}: log-log slope, {span}", slope, 1, slope, 1)
            yield Row(
                f"  {what} for one runner more, the last step against the first", each[-1], each[0], each[-1] / each[0]
            )

    def _rollout(self, *counts: int) -> Iterator[Row]:
        walls = []
        for count in counts:
            stack = self._stack(Size(1, count))
            stack.up("program")
            stack.project.configure(lambda config: config["host"].update(mtu=1400))
            walls.append(stack.up("program").wall)
            stack.clear()
        what = f"replacing {counts[-1]} hosts, s, against {counts[0]}"
        yield Row(what, walls[-1], walls[0], walls[-1] / walls[0])


def _overhead(what: str, pairs: list[tuple[Cost, Cost]]) -> Iterator[Row]:
    for unit, figures in (
        ("s", [(ours.wall, bare.wall) for ours, bare in pairs]),
        ("processor s", [(ours.cpu, bare.cpu) for ours, bare in pairs]),
    ):
        ours, bare = (median(side) for side in zip(*figures, strict=True))
        yield Row(f"{what}, {unit}", ours, bare, median(ours / bare for ours, bare in figures), OVERHEAD)


def _calls(ups: dict[Size, list[tuple[Cost, Cost]]]) -> Iterator[Row]:
    """Calls for one runner more. Raises Wrong when there are more than there should be."""
    small, large = min(ups, key=lambda size: size.runners), max(ups, key=lambda size: size.runners)
    more = large.runners - small.runners

    def each(api: str, side: int) -> float:
        return (ups[large][0][side].calls[api] - ups[small][0][side].calls[api]) / more

    for api, name in (("openstack", "OpenStack"), ("gitlab", "GitLab"), ("docker", "Docker")):
        ours, bare = each(api, 0), each(api, 1)
        yield Row(f"calls of `up` to {name} for one runner more", ours, bare, ours / bare if bare else 1 + ours)
    for size, pairs in ups.items():
        connections = max(ours.connections for ours, _ in pairs)
        yield Row(f"SSH connections of `up`, {size}", connections, 1, connections, CONNECTIONS)
        if connections > CONNECTIONS:
            raise Wrong(f"`up` of {size} opened {connections} SSH connections")
    if each("openstack", 0) > 0:
        raise Wrong(f"a runner more is {each('openstack', 0):.1f} calls to OpenStack more")
    if each("gitlab", 0) > GITLAB_CALLS_PER_RUNNER:
        raise Wrong(f"a runner more is {each('gitlab', 0):.1f} calls to GitLab more")


def _lift_quotas(sandbox: Sandbox) -> None:
    """Twenty hosts, and twice as many while they are replaced, are more than a new project may have."""
    cloud = sandbox.openstack
    project = cloud.current_project_id
    assert project is not None
    cloud.compute.update_quota_set(project, instances=-1, cores=-1, ram=-1, server_group_members=-1)
    cloud.network.update_quota(project, port=-1, floatingip=-1)


def machine() -> dict[str, object]:
    """What was measured on."""
    return {"processors": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def main(arguments: Sequence[str]) -> None:
    """Measures, prints each row when it is known, and writes them all. Raises Wrong."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures the program against a bare one.")
    parser.add_argument("--small", action="store_true", help="few runs of small stacks: for the results, not the times")
    parser.add_argument("--json", type=Path, default=ROOT / "bench.json", metavar="FILE")
    asked = parser.parse_args(arguments)
    rows = []
    print(f"{'':<72} {'program':>9} {'other':>9} {'ratio':>7}  at most")
    # A short path: a Unix socket's has room for about a hundred characters.
    with TemporaryDirectory(prefix="glr-") as state, TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(state))
        try:
            _lift_quotas(sandbox)
            for row in Bench(sandbox, Path(folder)).rows(SMALL if asked.small else WHOLE):
                target = f"{row.target:.2f}" if row.target is not None else ""
                print(f"{row.what:<72} {row.program:9.2f} {row.other:9.2f} {row.ratio:7.2f}  {target}", flush=True)
                rows.append(row)
        finally:
            sandbox.close()
    asked.json.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Wrong as wrong:
        sys.exit(f"error: {wrong}")
