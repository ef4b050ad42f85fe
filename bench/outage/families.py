"""The two families of stores, and how each of their stores is taken away and brought back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tests.stores.qdrant_fixtures import QdrantServer
from tests.system import System
from tests.valkeys import MASTER_KEY, TcpValkey

ADMIN_KEY = "the-admin-key-of-the-outage-bench"


_CHILDREN = {"redis": ("valkey", "valkey"), "qdrant": ("edge", "vectors")}
"""Store -> the name of its process, and of its directory."""


class Family(Protocol):
    """A running system and power over its stores, which are called `redis` and `qdrant`."""

    system: System

    def take(self, store: str, mode: str) -> None:
        """Has a store refuse connections, or hang."""

    def bring_back(self, store: str, mode: str) -> None:
        """Ends that."""


class Embedded:
    """The children of the server.

    The server starts a child again that died. So that it stays away, its directory is moved, without which none starts.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self._stopped: dict[str, int] = {}

    def take(self, store: str, mode: str) -> None:
        """As `Family.take`."""
        name, directory = _CHILDREN[store]
        pid = self.system.children()[name]
        if mode == "hanging":
            os.kill(pid, signal.SIGSTOP)
            self._stopped[store] = pid
        else:
            (self.system.data / directory).rename(self.system.data / f"{directory}.away")
            os.kill(pid, signal.SIGKILL)

    def bring_back(self, store: str, mode: str) -> None:
        """As `Family.bring_back`."""
        _, directory = _CHILDREN[store]
        if mode == "hanging":
            os.kill(self._stopped.pop(store), signal.SIGCONT)
        else:
            (self.system.data / f"{directory}.away").rename(self.system.data / directory)


class Live:
    """Valkey over TCP, and Qdrant's gRPC in front of its engine."""

    def __init__(self, system: System, valkey: TcpValkey, qdrant: QdrantServer) -> None:
        self.system = system
        self._valkey = valkey
        self._qdrant = qdrant

    def take(self, store: str, mode: str) -> None:
        """As `Family.take`."""
        if store == "redis":
            self._valkey.pause() if mode == "hanging" else self._valkey.kill()
        elif mode == "hanging":
            self._qdrant.send(signal.SIGSTOP)
        else:
            self._qdrant.stop(signal.SIGKILL)

    def bring_back(self, store: str, mode: str) -> None:
        """As `Family.bring_back`."""
        if store == "redis":
            self._valkey.resume() if mode == "hanging" else self._valkey.start()
        elif mode == "hanging":
            self._qdrant.send(signal.SIGCONT)
        else:
            self._qdrant.start()


@contextmanager
def running(family: str, home: Path, upstream: str, *, pipeline: str = "sync") -> Iterator[Family]:
    """A family with a system on it.

    Args:
        family: `embedded` or `live`.
        home: A directory for all of it.
        upstream: The base URL of the provider.
        pipeline: `memory.pipeline`.
    """
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN_KEY,
        "MEMORYOS_MEMORY__PIPELINE": pipeline,
        "OPENAI_BASE_URL": upstream,
    }
    if family == "embedded":
        with System(home / "system", env) as system:
            yield Embedded(system)
        return
    valkey = TcpValkey(home / "valkey").start()
    qdrant = QdrantServer(home / "qdrant").start()
    env |= {
        "MEMORYOS_REDIS__URL": valkey.url,
        "MEMORYOS_QDRANT__URL": qdrant.url,
        "MEMORYOS_SECURITY__MASTER_KEY": MASTER_KEY,
    }
    try:
        with System(home / "system", env) as system:
            yield Live(system, valkey, qdrant)
    finally:
        for store in (valkey, qdrant):
            with suppress(Exception):  # it may be away
                store.stop(signal.SIGKILL)
