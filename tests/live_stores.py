"""The live stores of one system: a Valkey, alone or as a cluster, and a loopback Qdrant, as processes of their own."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.stores.qdrant_fixtures import QdrantServer
from tests.valkeys import MASTER_KEY, TcpValkey, ValkeyCluster, wait_for


class LiveStores:
    """Started once, used by as many servers as are told where they are."""

    def __init__(self, directory: Path, redis: TcpValkey | ValkeyCluster) -> None:
        self.redis = redis
        self.qdrant = QdrantServer(directory / "qdrant")
        self._directory = directory
        self._running = False

    @property
    def settings(self) -> Mapping[str, str]:
        """What leads a server there."""
        return {
            "MEMORYOS_REDIS__URL": self.redis.url,
            "MEMORYOS_QDRANT__URL": self.qdrant.url,
            "MEMORYOS_SECURITY__MASTER_KEY": MASTER_KEY,
        }

    def start(self) -> Mapping[str, str]:
        """Starts them, the first time; the settings."""
        if not self._running:
            self._running = True
            self.redis.start()
            self.qdrant.start()
        return self.settings

    @property
    def nodes(self) -> Sequence[TcpValkey]:
        """Every Valkey."""
        return self.redis.nodes if isinstance(self.redis, ValkeyCluster) else [self.redis]

    def pids(self, store: str) -> Sequence[int]:
        """The processes of `valkey` or `edge`, the searchable side."""
        if store == "edge":
            return [self.qdrant.pid]
        return [node.process.pid for node in self.nodes if node.process is not None]

    def files(self, store: str) -> Path:
        """The directory in which all files of `valkey` or `edge` lie."""
        return self._directory / {"valkey": "valkey", "edge": "qdrant"}[store]

    def restart(self, store: str, number: int) -> None:
        """Ends the processes of `valkey` or `edge` by a signal and starts them again, as their operator would."""
        if store == "edge":
            self.qdrant.stop(number)
            self.qdrant.start()
            return
        for node in self.nodes:
            node.stop(number)
        for node in self.nodes:
            node.start()

    def rewrite(self) -> None:
        """Has `valkey` write its files anew without what was deleted, as its operator may."""
        for node in self.nodes:
            node.admin.bgrewriteaof()
            wait_for(lambda node=node: not _rewrites(node), what="rewriting a file")

    def open_entries(self) -> int:
        """What was accepted and is not yet ended."""
        total = 0
        for node in self.nodes:
            if node.process is not None and node.admin.info("replication")["role"] == "master":
                total += sum(node.admin.xlen(key) for key in node.admin.scan_iter("{p*}:queue", count=1000))
        return total

    def remove(self) -> None:
        """Ends them and removes what they kept."""
        self.redis.remove()
        self.qdrant.stop(signal.SIGKILL)
        self._running = False
        shutil.rmtree(self._directory, ignore_errors=True)


def _rewrites(node: TcpValkey) -> bool:
    told = node.admin.info("persistence")
    return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


def standalone(directory: Path) -> LiveStores:
    """One Valkey and one Qdrant."""
    return LiveStores(directory, TcpValkey(directory / "valkey"))


def cluster(home: Path, *, replicas: int = 0) -> LiveStores:
    """A cluster of three primaries and one Qdrant, in a directory of their own beside what the system keeps."""
    directory = Path(tempfile.mkdtemp(prefix=f"mos-{home.name[:20]}-"))
    return LiveStores(directory, ValkeyCluster(directory / "valkey", replicas=replicas))
