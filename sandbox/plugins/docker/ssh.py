"""Docker over `ssh://`, as Docker's own client does it: through the system's `ssh` and `docker system dial-stdio`.

The command line is that of docker/cli's connhelper (cli/connhelper/connhelper.go and ssh/ssh.go), which the official
plugin uses, so `sshOpts`, the user's ssh_config, agent and known_hosts count here as they do there.
"""

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool

CONNECT_TIMEOUT_FLAG = "-o ConnectTimeout=30"
# A host name that no one looks up: requests and urllib3 want one in a URL.
PLACEHOLDER_URL = "http://docker.example.com:80"
ENDING_SECONDS = 2


def command(url: str, options: list[str]) -> list[str]:
    """The command line that reaches the Docker Engine at `ssh://[user@]host[:port][/path/to/docker.sock]`."""
    parts: SplitResult = urlsplit(url)
    if not parts.hostname or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{url} is not of the form ssh://user@host:port")
    flags = list(options)
    if "ConnectTimeout" not in "".join(flags):
        flags.append(CONNECT_TIMEOUT_FLAG)
    if "-T" not in flags:
        flags.append("-T")
    if parts.username:
        flags += ["-l", parts.username]
    if parts.port:
        flags += ["-p", str(parts.port)]
    docker = ["docker"] if not parts.path.strip("/") else ["docker", f"--host=unix://{parts.path}"]
    return ["ssh", *flags, "--", parts.hostname, *docker, "system", "dial-stdio"]


class Connection(urllib3.connection.HTTPConnection):
    """One HTTP connection, carried by one `ssh` process."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        super().__init__("docker.example.com", **options)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None
        self._end = ""

    def connect(self) -> None:
        """Start `ssh`; its standard input and output are one end of a socket pair, the other end is ours."""
        ours, theirs = socket.socketpair()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the connection
        with theirs:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._messages,
                start_new_session=True,
            )
        if self.timeout is not None:
            ours.settimeout(self.timeout)
        self.sock = ours

    def getresponse(self) -> Any:
        """The answer; when `ssh` has ended instead, what it said."""
        with self._explaining():
            return super().getresponse()

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request; when `ssh` has ended already, what it said."""
        with self._explaining():
            super().request(*arguments, **options)

    def close(self) -> None:
        """Close the connection and wait for `ssh`, which ends with its input."""
        super().close()
        process, messages = self._process, self._messages
        self._process = self._messages = None
        if process is None or messages is None:
            return
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        with messages:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip()
        self._end = (
            f"command [{' '.join(self._arguments)}] has exited with exit status {process.returncode}, make sure the URL"
            f" is valid, and Docker 18.09 or later is installed on the remote host: stderr={said}"
        )

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise ConnectionError(self._end or str(error)) from error


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, arguments: list[str], size: int) -> None:
        super().__init__("docker.example.com", maxsize=size)
        self._arguments = arguments

    def _new_conn(self) -> Connection:
        return Connection(self._arguments, timeout=self.timeout.connect_timeout)


class Adapter(requests.adapters.HTTPAdapter):
    """Carries the requests of a `requests` session over `ssh`."""

    def __init__(self, arguments: list[str], size: int = 10) -> None:
        super().__init__()
        self._pool = _Pool(arguments, size)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> urllib3.connectionpool.HTTPConnectionPool:
        """The one pool there is."""
        return self._pool

    def close(self) -> None:
        """End all `ssh` processes."""
        self._pool.close()
        super().close()
