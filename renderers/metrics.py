"""Metrics of a machine and of its runner managers, for Prometheus: what serves them, and where they are.

A manager serves its own at its container's address, beside job URLs and a profiler, and the containers of one runner
come and go: two run side by side during an update, so that none can own a port of the machine. One port of the machine
therefore answers for all of them. It looks for the manager at every request, and gives out nothing but metrics.
"""

from collections.abc import Iterable, Mapping
from textwrap import dedent
from typing import Any

METRICS_PORT = 9252
"""TCP port, of managers and machines: the one that Prometheus' list of ports has for GitLab Runner."""
METRICS_SCRIPT = "/usr/local/sbin/serve-metrics"
MANAGERS_LISTEN_ADDRESS = f":{METRICS_PORT}"
"""`listen_address` in a manager's config.toml."""
LOOPBACK_LISTEN_ADDRESS = f"127.0.0.1:{METRICS_PORT}"
"""The same where nobody else is to get at them: the handover asks in the container itself."""
RUNNER_LABEL = "gitlab-runners.runner"
"""Label of all that belongs to a runner on a host: its name in the stack."""
TOKEN_EXPIRY_LABEL = "gitlab-runners.token-expiry"
"""Label of a configuration whose token expires: when, in seconds since 1970."""
METRICS_SOCKET_UNIT = "runner-metrics.socket"
NODE_EXPORTER_PACKAGE = "prometheus-node-exporter"
_NODE_EXPORTER_PORT = 9100


def prometheus_targets(stack: str, hosts: Mapping[str, str], runners: Iterable[str]) -> list[dict[str, Any]]:
    """Prometheus' targets, as file_sd_config has them: of each machine, and of each runner on it.

    `hosts` are addresses by name. The label `instance` is the machine's name, `gitlab_runner` that of the runner.
    """
    targets: list[dict[str, Any]] = []
    for host, address in hosts.items():
        target = f"[{address}]:{METRICS_PORT}" if ":" in address else f"{address}:{METRICS_PORT}"
        labels = {"stack": stack, "instance": host}
        targets.append({"targets": [target], "labels": labels})
        targets += [
            {
                "targets": [target],
                "labels": labels | {"gitlab_runner": runner, "__metrics_path__": f"/metrics/{runner}"},
            }
            for runner in runners
        ]
    return targets


# One HTTP request on standard input, the answer on standard output.
METRICS_SERVER = dedent(f"""\
    #!/bin/bash
    # Answers GET /metrics with this machine's metrics, GET /metrics/<runner> with those of the runner's newest manager.
    export LC_ALL=C

    # The metrics at an address.
    metrics_of() {{
      {{
        printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3
        read -r _ status _ <&3
        sed '1,/^\\r*$/d' <&3
        [ "$status" = 200 ]
      }} 3<>"/dev/tcp/$1/$2"
    }}

    address_of_manager() {{
      local manager networks='{{{{range .NetworkSettings.Networks}}}}{{{{println .IPAddress}}}}{{{{end}}}}'
      manager=$(docker ps --quiet --filter "label={RUNNER_LABEL}=$1" | head -n 1)
      [ -n "$manager" ] && docker inspect --format "$networks" "$manager" | head -n 1
    }}

    # When the runner's token expires, if it does.
    expiry_of_token() {{
      local name=gitlab_runners_token_expiry_timestamp_seconds expiry
      expiry=$(docker ps --all --filter "label={RUNNER_LABEL}=$1" --format '{{{{.Label "{TOKEN_EXPIRY_LABEL}"}}}}' |
        grep -m 1 .) || return
      printf '\\n# HELP %s When the authentication token expires.\\n# TYPE %s gauge\\n%s %s' \\
        $name $name $name "$expiry"
    }}

    answer() {{
      printf 'HTTP/1.0 %s\\r\\nContent-Type: text/plain; version=0.0.4; charset=utf-8\\r\\n' "$1"
      printf 'Content-Length: %d\\r\\n\\r\\n%s\\n' "$((${{#2}} + 1))" "$2"
    }}

    read -r -t 10 method path _ || exit 1
    while read -r -t 10 header && [ -n "${{header%$'\\r'}}" ]; do :; done
    runner=${{path#/metrics/}}
    if [ "$method" != GET ]; then
      answer '405 Method Not Allowed' 'only GET'
    elif [ "$path" = /metrics ]; then
      if metrics=$(metrics_of 127.0.0.1 {_NODE_EXPORTER_PORT}); then
        answer '200 OK' "$metrics"
      else
        answer '502 Bad Gateway' 'no node exporter answers on this machine'
      fi
    elif [ "$runner" != "$path" ] && [[ $runner =~ ^[a-z0-9-]+$ ]]; then
      if address=$(address_of_manager "$runner") && metrics=$(metrics_of "$address" {METRICS_PORT}); then
        answer '200 OK' "$metrics$(expiry_of_token "$runner")"
      else
        answer '502 Bad Gateway' "no manager of runner $runner answers on this machine"
      fi
    else
      answer '404 Not Found' 'there are /metrics and /metrics/<runner>'
    fi
""")


def _socket(ipv6: bool) -> str:
    # A job reaches its machine by the address of its network's bridge, which no security group sees.
    block_jobs = " && ".join(
        f"{{ {command} -w -t raw -C {rule} || {command} -w -t raw -I {rule}; }}"
        for command in (("iptables", "ip6tables") if ipv6 else ("iptables",))
        for rule in (
            f"PREROUTING -i {bridge} -p tcp --dport {METRICS_PORT} -m addrtype --dst-type LOCAL -j DROP"
            for bridge in ("docker0", "br-+")
        )
    )
    return dedent(f"""\
        [Unit]
        Description=Metrics of this machine and of its runner managers

        [Socket]
        ListenStream={METRICS_PORT}
        Accept=yes
        ExecStartPre=/bin/sh -c '{block_jobs}'

        [Install]
        WantedBy=sockets.target
    """)


_METRICS_SERVICE = dedent(f"""\
    [Unit]
    Description=One answer with metrics
    CollectMode=inactive-or-failed

    [Service]
    ExecStart=-{METRICS_SCRIPT}
    StandardInput=socket
    StandardError=journal
    LogLevelMax=warning
    RuntimeMaxSec=30
    DynamicUser=yes
    SupplementaryGroups=docker
""")

# Debian's package has it listen on every address.
_NODE_EXPORTER_DROP_IN = dedent(f"""\
    [Service]
    ExecStart=
    ExecStart=/usr/bin/prometheus-node-exporter --web.listen-address=127.0.0.1:{_NODE_EXPORTER_PORT}
""")


def metrics_units(*, ipv6: bool) -> dict[str, str]:
    """Files by their paths; `ipv6` says whether containers have IPv6 addresses."""
    return {
        "/etc/systemd/system/runner-metrics.socket": _socket(ipv6),
        "/etc/systemd/system/runner-metrics@.service": _METRICS_SERVICE,
        "/etc/systemd/system/prometheus-node-exporter.service.d/10-listen.conf": _NODE_EXPORTER_DROP_IN,
    }
