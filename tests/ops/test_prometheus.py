"""What is shipped for Prometheus and Grafana."""

import json
import re
import subprocess
from pathlib import Path

import yaml

from tests.promtool import promtool

OPS = Path(__file__).parents[2] / "ops"
DASHBOARD = json.loads((OPS / "grafana/dashboard.json").read_text())
# What GitLab Runner 19 (commands/builds_helper.go, commands/multi.go, helpers/prometheus, network) and node_exporter
# export, as far as it is used here.
KNOWN = {
    "gitlab_runner_api_request_statuses_total",
    "gitlab_runner_concurrent",
    "gitlab_runner_failed_jobs_total",
    "gitlab_runner_job_queue_duration_seconds_bucket",
    "gitlab_runner_jobs",
    "gitlab_runner_jobs_total",
    "gitlab_runner_limit",
    "gitlab_runner_version_info",
    # Of the machine's own (renderers/metrics.py).
    "gitlab_runners_token_expiry_timestamp_seconds",
    "node_cpu_seconds_total",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_network_mtu_bytes",
}


def queries() -> list[str]:
    return [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


def check(*arguments: str | Path) -> None:
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    check("test", "rules", OPS / "prometheus/rules_test.yml")


def test_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check("check", "rules", file)


def test_only_metrics_that_exist_are_asked_for() -> None:
    groups = yaml.safe_load((OPS / "prometheus/rules.yml").read_text())["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]] + queries()
    asked = {name for text in expressions for name in re.findall(r"\b(?:gitlab_runners?|node)_\w+", text)}
    assert asked - {"gitlab_runner"} <= KNOWN


def test_every_alert_has_a_test_and_a_line_in_the_docs() -> None:
    (group,) = yaml.safe_load((OPS / "prometheus/rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    tests = yaml.safe_load((OPS / "prometheus/rules_test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    documented = (OPS.parent / "docs/how-to/monitor-runners.md").read_text()
    assert fired == alerts == set(re.findall(r"^\| `(Runner\w+)` \|", documented, re.MULTILINE))


def test_the_dashboard_can_be_imported() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= set(DASHBOARD)
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))
    # Whoever imports it chooses the data source.
    assert "id" not in DASHBOARD
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"${datasource}"}
