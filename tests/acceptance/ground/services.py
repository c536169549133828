"""The cloud's daemons: how each is started, and how to know that it answers."""

import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.console import Failure

from .configuration import DRIVER_DIRECTORY, LOOPBACK, PORTS
from .namespaces import wait_until
from .rootfs import DAEMONS_ROOT

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_TAIL = 20  # lines of a daemon's log
_ENVIRONMENT = {
    "PATH": f"{DAEMONS_ROOT}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": f"/{DRIVER_DIRECTORY}",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "OS_KEYSTONE_CONFIG_DIR": "/etc/keystone",
    "OS_PLACEMENT_CONFIG_DIR": "/etc/placement",
}


@dataclass(frozen=True)
class Service:
    """A daemon.

    port:    where it answers, if it does.
    is_http: whether it answers only once it has said something there.
    probe:   a command that succeeds when it answers, for one without a port.
    after:   daemons that have to answer before it is started.
    """

    name: str
    command: Sequence[str]
    port: int | None = None
    is_http: bool = True
    probe: Sequence[str] = ()
    after: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _uwsgi(port: int, program: str) -> Sequence[str]:
    return (
        *("uwsgi", "--plugin", "python3", "--http-socket", f"{LOOPBACK}:{port}", "--wsgi-file", program),
        *("--master", "--die-on-term", "--processes", "1", "--threads", "8", "--lazy-apps", "--need-app"),
        # uWSGI does not keep connections open, and clients have to be told.
        *("--buffer-size", "65535", "--add-header", "Connection: close", "--disable-logging"),
    )


def _with_configuration(program: str, *files: str) -> Sequence[str]:
    return (program, *(word for file in files for word in ("--config-file", file)))


NOVA_FILES = ("/etc/nova/nova.conf", "/etc/nova/database.conf")
_RABBITMQ_ENVIRONMENT = {
    "HOME": "/run/rabbitmq",
    "ERL_EPMD_ADDRESS": LOOPBACK,
    "RABBITMQ_NODENAME": "ground@localhost",
    "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
    # Below /run, so every start begins without queues.
    "RABBITMQ_MNESIA_BASE": "/run/rabbitmq/mnesia",
    "RABBITMQ_LOG_BASE": "/run/rabbitmq/log",
    "RABBITMQ_PID_FILE": "/run/rabbitmq/pid",
    "RABBITMQ_ENABLED_PLUGINS_FILE": "/run/rabbitmq/plugins",
    "RABBITMQ_CONFIG_FILE": "/run/rabbitmq/configuration",
    "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
}

SERVICES = (
    Service(
        "mariadb",
        (
            *("mariadbd", "--no-defaults", "--user=root", "--datadir=/var/lib/ground-mysql"),
            *(f"--bind-address={LOOPBACK}", f"--port={PORTS['database']}", "--socket=/run/mysqld.sock"),
            # Nothing has to survive a power cut.
            *("--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"),
            *("--skip-name-resolve", "--max-connections=500", "--innodb-buffer-pool-size=128M"),
            "--character-set-server=utf8mb3",
        ),
        port=PORTS["database"],
        is_http=False,
    ),
    Service(
        "rabbitmq",
        ("/usr/lib/rabbitmq/bin/rabbitmq-server",),
        port=PORTS["rabbitmq"],
        is_http=False,
        environment=_RABBITMQ_ENVIRONMENT,
    ),
    Service("libvirt", ("libvirtd",), probe=("virsh", "--connect", "qemu:///system", "version")),
    Service(
        "keystone",
        _uwsgi(PORTS["identity"], "/usr/bin/keystone-wsgi-public"),
        port=PORTS["identity"],
        after=("mariadb",),
    ),
    Service(
        "placement", _uwsgi(PORTS["placement"], "/usr/bin/placement-api"), port=PORTS["placement"], after=("mariadb",)
    ),
    Service(
        "neutron",
        _with_configuration("neutron-server", "/etc/neutron/neutron.conf"),
        port=PORTS["network"],
        after=("mariadb", "rabbitmq"),
    ),
    Service(
        "nova-conductor", _with_configuration("nova-conductor", *NOVA_FILES), after=("mariadb", "rabbitmq", "keystone")
    ),
    Service("nova-api", _with_configuration("nova-api", *NOVA_FILES), port=PORTS["compute"], after=("keystone",)),
    Service(
        "glance",
        _with_configuration("glance-api", "/etc/glance/glance-api.conf"),
        port=PORTS["image"],
        after=("keystone",),
    ),
    Service("nova-scheduler", _with_configuration("nova-scheduler", *NOVA_FILES), after=("keystone",)),
    Service(
        "nova-compute",
        _with_configuration("nova-compute", "/etc/nova/nova.conf"),
        after=("rabbitmq", "libvirt", "keystone", "placement"),
    ),
)


class Daemons:
    """The daemons that have been started, in the root file system that all of them share."""

    def __init__(self, root: Path, logs: Path) -> None:
        self._root = root
        self._logs = logs
        self._services = {service.name: service for service in SERVICES}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._answering: set[str] = set()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, *names: str) -> None:
        """Starts these daemons, each as soon as those answer that it needs; without names, all that do not run."""
        for service in [self._services[name] for name in names] or SERVICES:
            if service.name in self._running:
                continue
            self.await_answer(*service.after)
            if service.name == "rabbitmq":
                (self._root / "run/rabbitmq").mkdir()
            with self._log(service.name).open("ab") as log:
                self._running[service.name] = subprocess.Popen(
                    self.command(*service.command),
                    env=_ENVIRONMENT | service.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # an interruption by the keyboard is for the command
                )

    def await_answer(self, *names: str) -> None:
        """Waits until these daemons answer; without names, all that have been started."""
        for name in names or self._running:
            if name in self._answering:
                continue
            for _ in wait_until(START_TIMEOUT_S):
                if self._running[name].poll() is not None:
                    raise Failure(f"{name} has ended; the end of its log:\n{self._tail(name)}")
                if self._answers(self._services[name]):
                    break
            else:
                raise Failure(f"{name} does not answer; the end of its log:\n{self._tail(name)}")
            self._answering.add(name)

    def run(self, log_name: str, *command: str) -> None:
        """Runs a command to its end in the daemons' root file system."""
        with self._log(log_name).open("ab") as log:
            done = subprocess.run(
                self.command(*command), env=_ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            raise Failure(f"{' '.join(command)} failed; the end of its log:\n{self._tail(log_name)}")

    def command(self, *command: str) -> list[str]:
        """What to run for a command of the daemons' root file system."""
        return ["chroot", str(self._root), *command]

    def stop(self) -> None:
        """Ends all daemons: the database in order, the others, which keep nothing to themselves, at once."""
        for name, process in self._running.items():
            os.killpg(process.pid, signal.SIGTERM if name == "mariadb" else signal.SIGKILL)
        for name, process in self._running.items():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise Failure(f"{name} does not end") from error
        self._running.clear()

    def report_dead(self) -> str:
        """The end of the log of each daemon that has ended though it should run."""
        dead = [name for name, process in self._running.items() if process.poll() is not None]
        return "\n".join(f"{name} has ended; the end of its log:\n{self._tail(name)}" for name in dead)

    def _answers(self, service: Service) -> bool:
        if service.probe:
            probe = subprocess.run(
                self.command(*service.probe), env=_ENVIRONMENT, capture_output=True, check=False, timeout=30
            )
            return probe.returncode == 0
        if service.port is None:
            return True
        try:
            if not service.is_http:
                socket.create_connection((LOOPBACK, service.port), timeout=1).close()
                return True
            connection = http.client.HTTPConnection(LOOPBACK, service.port, timeout=30)
            connection.request("GET", "/")
            connection.getresponse()
            connection.close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _tail(self, name: str) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-_TAIL:])
