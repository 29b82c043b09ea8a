"""Redis and PostgreSQL for the tests: started on a free port, with data in a temporary folder, and stopped.

Binaries are those that `fetch.sh` brought, else those of Debian's packages if they are installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
ROOTS = (HERE.parents[1] / ".services", Path("/"))
MISSING = "needs {}: run `make services`"
STARTED_WITHIN_SECONDS = 60


class MissingServiceError(Exception):
    """The server's binaries are not on this machine."""


class Server:
    """A server process in a temporary folder.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    _deadly = signal.SIGKILL

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._command: Sequence[str | Path] = ()
        self._is_up: Sequence[str | Path] = ()

    def stop(self) -> None:
        """Ends it, if it runs."""
        self._end(signal.SIGINT)  # PostgreSQL waits for its clients when it is asked by SIGTERM

    def crash(self) -> None:
        """Ends it without letting it finish anything."""
        self._end(self._deadly)

    def restart(self) -> None:
        """Starts it again on the same port, after `stop` or `crash`."""
        self._start(self._command, self._is_up)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STARTED_WITHIN_SECONDS)

    def _start(self, command: Sequence[str | Path], check: Sequence[str | Path]) -> None:
        """Starts `command` and waits until `check` succeeds."""
        self._command = command
        log = self.folder / "log"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(command, env=_environment(), stdout=stream, stderr=stream, cwd=self.folder)
        deadline = time.monotonic() + STARTED_WITHIN_SECONDS
        while subprocess.run(check, env=_environment(), capture_output=True).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)


class Redis(Server):
    """A Redis server that keeps everything in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        server, client = (_find("Redis", f"usr/bin/{name}") for name in ("redis-server", "redis-cli"))
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": folder,
            "save": "",
            "appendonly": "no",
            "databases": 64,
        }
        command = [server, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        self._is_up = [client, "-p", str(self.port), "ping"]
        self._start(command, self._is_up)


class PostgreSQL(Server):
    """A PostgreSQL server with a database `feast`, whose owner is `feast`; pgvector is there to be created."""

    _deadly = signal.SIGQUIT  # after SIGKILL it would leave processes that keep it from being started again

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        extension = _find("PostgreSQL with pgvector", "usr/share/postgresql/*/extension/vector.control")
        version = extension.parents[1].name
        binaries = extension.parents[4] / "lib" / "postgresql" / version / "bin"
        if not (binaries / "initdb").is_file():
            raise MissingServiceError(MISSING.format("PostgreSQL with pgvector"))
        data = folder / "data"
        if os.geteuid() == 0:
            shutil.chown(folder, NOBODY, NOBODY)
        initdb = [binaries / "initdb", "-D", data, "-U", "feast", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        done = subprocess.run([*_AS_USER, *initdb], env=_environment(), capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "jit": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._start(
            [*_AS_USER, binaries / "postgres", "-D", data, "-p", str(self.port), *settings],
            [binaries / "psql", *self._login("postgres"), "-c", "CREATE DATABASE feast"],
        )
        self._psql = [binaries / "psql", *self._login("feast")]
        self._is_up = [*self._psql, "-c", "SELECT 1"]

    def execute(self, statement: str) -> str:
        """What a statement prints: rows as lines, fields separated by ``|``."""
        done = subprocess.run([*self._psql, "-c", statement], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def _login(self, database: str) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "feast", "-d", database, "-qAt", "-v", "ON_ERROR_STOP=1"]


NOBODY = 65534
# PostgreSQL refuses to run as root. The capability lets the other user into folders that are root's own, such as a
# checkout in its home or pytest's temporary folders; the secure bit makes it count in access(2), too.
_AS_USER: list[str] = (
    [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"),
    ]
    if os.geteuid() == 0
    else []
)


def _find(name: str, pattern: str) -> Path:
    for root in ROOTS:
        found = sorted(root.glob(pattern))
        if found:
            return found[-1]
    raise MissingServiceError(MISSING.format(name))


def _environment() -> dict[str, str]:
    """This process's environment, with the libraries that `fetch.sh` brought."""
    folders = [*ROOTS[0].glob("usr/lib/*-linux-gnu*"), *ROOTS[0].glob("lib/*-linux-gnu*")]
    paths = [*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)), "LC_ALL": "C"}
