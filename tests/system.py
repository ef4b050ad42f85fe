"""The whole system as real processes, for tests and benchmarks: server and bridge on free ports, in folders of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

_Found = TypeVar("_Found")

FAMILY = "MEMORYOS_TEST_STORES"
"""Which stores a system gets that names none: `live-cluster`, else the embedded ones (`pytest --stores`)."""


def on_cluster() -> bool:
    """Whether stores that nobody names are a Valkey cluster and a loopback Qdrant."""
    return os.environ.get(FAMILY) == "live-cluster"


CACHE = Path(
    os.environ.get("MEMORYOS_TEST_CACHE") or Path(tempfile.gettempdir()) / f"memoryos-test-cache-{os.getuid()}"
)
"""Where the built model is kept between tests."""


_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, now and between the lives of who will, and that nobody else was given.

    It is none of those that the kernel gives to outgoing connections (from 32768 up, elsewhere from 49152).
    """
    while True:
        port = random.randrange(10_000, 32_768)  # noqa: S311  # guards nothing
        if port in _given:
            continue
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def until(what: Callable[[], _Found], seconds: float = 60) -> _Found:
    """What a condition gives once it holds; fails if it does not in time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def _kill_group(leader: int, others: Collection[int]) -> None:
    """Kills a process group, and returns once `others` of it have closed their files."""
    os.killpg(leader, signal.SIGKILL)
    until(lambda: not any(map(_is_running, others)))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Stores(Protocol):
    """Live stores of one system."""

    def start(self) -> Mapping[str, str]:
        """Starts what does not run; the settings that lead there."""

    def pids(self, store: str) -> Sequence[int]:
        """The processes of `valkey` or `edge`, the searchable side."""

    def files(self, store: str) -> Path:
        """The directory in which all files of `valkey` or `edge` lie."""

    def restart(self, store: str, number: int) -> None:
        """Ends the processes of `valkey` or `edge` by a signal and starts them again, as their operator would."""

    def rewrite(self) -> None:
        """Has `valkey` write its files anew without what was deleted, as its operator may."""

    def remove(self) -> None:
        """Ends them and what they kept."""


class System:
    """Server and bridge. Start, use, stop or kill, start again on the same data.

    Attributes:
        server_module: What is run as the server.
    """

    server_module = "memoryos_server"

    def __init__(self, home: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.stores: Stores | None = None
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.server: subprocess.Popen[bytes] | None = None
        self.bridge: subprocess.Popen[bytes] | None = None
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MEMORYOS_", "OPENAI_"))}
        self.env = {
            **keep,
            "HOME": str(home),
            "XDG_DATA_HOME": str(home / "share"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(CACHE),
            "MEMORYOS_DATA_DIR": str(home / "data"),
            "MEMORYOS_SERVER__LISTEN": self.grpc,
            "MEMORYOS_SERVER__METRICS_LISTEN": self.metrics,
            "MEMORYOS_BRIDGE__LISTEN": self.http,
            "MEMORYOS_BRIDGE__SECRET": "secret-of-a-test",
            **(env or {}),
        }
        own = {"MEMORYOS_REDIS__URL", "MEMORYOS_QDRANT__URL", "MEMORYOS_SECURITY__MASTER_KEY"}
        if on_cluster() and own.isdisjoint(self.env):
            from tests.live_stores import cluster  # late: benchmarks use this module, and need no stores of tests

            self.stores = cluster(home)

    @property
    def url(self) -> str:
        """The bridge's base URL."""
        return f"http://{self.http}"

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.env["MEMORYOS_DATA_DIR"])

    def start(self, *, bridge: bool = True, wait: bool = True) -> System:
        """Starts what is not running and waits until it is ready."""
        self._start_stores()
        if self.server is None or self.server.poll() is not None:
            self.server = self._spawn(self.server_module, "server.log")
        if bridge and (self.bridge is None or self.bridge.poll() is not None):
            self.bridge = self._spawn("memoryos_bridge", "bridge.log")
        if wait:
            if bridge:
                self.wait_ready()
            else:
                self.wait_port(self.grpc)
        return self

    def _start_stores(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self.stores is not None:
            for name, value in self.stores.start().items():
                self.env.setdefault(name, value)

    def _spawn(self, module: str, log: str) -> subprocess.Popen[bytes]:
        with (self.home / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env=self.env,
                cwd=self.home,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_port(self, address: str, seconds: float = 60) -> None:
        """Waits until somebody listens on `address`."""
        host, port = address.rsplit(":", 1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._check_alive()
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"nobody listens on {address}\n{self.logs()}")

    def wait_ready(self, seconds: float = 60) -> None:
        """Waits until `/health/status` says `ready`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._check_alive()
            try:
                if self.get("/health/status")[1].get("mode") == "ready":
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.05)
        raise TimeoutError(f"not ready\n{self.logs()}")

    def _check_alive(self) -> None:
        for process in (self.server, self.bridge):
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"a process ended with {process.returncode}\n{self.logs()}")

    def logs(self) -> str:
        """The end of both logs."""
        parts = []
        for name in ("server.log", "bridge.log"):
            path = self.home / name
            if path.exists():
                parts.append(f"--- {name}\n" + path.read_text(errors="replace")[-4000:])
        return "\n".join(parts)

    def call(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON (or text) and headers of one request."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=verb)  # noqa: S310  # our own bridge
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310  # our own bridge
                raw, status, got = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            raw, status, got = error.read(), error.code, error.headers
        try:
            return status, json.loads(raw), got
        except ValueError:
            return status, raw.decode(errors="replace"), got

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any, Mapping[str, str]]:
        """GET."""
        return self.call("GET", path, None, headers)

    def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """POST."""
        return self.call("POST", path, body, headers)

    def cli(self, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs the `memoryos` command against this system, whether its server runs or not."""
        self._start_stores()
        done = subprocess.run(
            [sys.executable, "-m", "memoryos.cli", *arguments],
            env={**self.env, **env},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and done.returncode:
            raise RuntimeError(f"memoryos {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def stop(self) -> None:
        """Stops bridge and server as an operator would."""
        for process in (self.bridge, self.server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise
        self.server = self.bridge = None

    def kill(self, *, bridge: bool = True, group: bool = False) -> None:
        """Kills without warning: the processes, or their whole groups with all children."""
        for process in (self.bridge, self.server) if bridge else (self.server,):
            if process is not None and process.poll() is None:
                if group:
                    _kill_group(process.pid, self.children().values() if process is self.server else ())
                else:
                    process.kill()
                process.wait()

    def children(self) -> dict[str, int]:
        """Name -> pid of the server's direct children."""
        assert self.server is not None
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
                command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if int(text.rsplit(")", 1)[1].split()[1]) == self.server.pid:
                name = "valkey" if "valkey" in command else "edge" if "edge_process" in command else command
                found[name] = int(text.split()[0])
        return found

    def pids(self, store: str) -> Sequence[int]:
        """The processes of a store, `valkey` or `edge` (the searchable side), wherever they run."""
        return [self.children()[store]] if self.stores is None else self.stores.pids(store)

    def kill_store(self, store: str) -> None:
        """Kills a store without warning; it comes back."""
        if self.stores is not None:
            self.stores.restart(store, signal.SIGKILL)
        else:
            os.kill(self.children()[store], signal.SIGKILL)

    def raw(self, store: str) -> bytes:
        """All bytes of the files of a store, `valkey` or `edge`."""
        embedded = self.data / {"valkey": "valkey", "edge": "vectors"}[store]
        directory = embedded if self.stores is None else self.stores.files(store)
        while True:
            try:
                return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())
            except FileNotFoundError:
                pass  # one was renamed meanwhile: all are read again

    @contextmanager
    def frozen(self, store: str) -> Iterator[None]:
        """Stops a store, `valkey` or `edge` (the searchable side), wherever it runs, without ending it."""
        pids = self.pids(store)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def __enter__(self) -> System:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        try:
            self.stop()
        finally:
            self.end()

    def end(self) -> None:
        """Kills it without warning, and its stores for good."""
        self.kill(group=True)
        if self.stores is not None:
            self.stores.remove()
