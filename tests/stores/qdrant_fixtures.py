"""What the tests of the live vector family share: a loopback server, and vectors on it or on a real one."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from qdrant_client import grpc as q

from memoryos_server.stores.qdrant_link import Place, QdrantLink
from memoryos_server.stores.vectors_qdrant import QdrantVectors
from tests.stores.embedded_fixtures import DENSE, Keys

ROOT = Path(__file__).parents[2]
REAL_URL = "MEMORYOS_TEST_QDRANT_URL"
"""Where a real server is, for `make test-live`; its key in `MEMORYOS_TEST_QDRANT_API_KEY`."""

Opened = Callable[..., AbstractAsyncContextManager[tuple[Any, Any]]]


class QdrantServer:
    """A loopback server on a directory; started again, it is at the same port."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "tests.qdrant_server", "--directory", str(directory), *options]
        self._scheme = "https" if "--certificate" in options else "http"
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> QdrantServer:
        command = [*self._command, "--listen", f"127.0.0.1:{self._port}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("listening "), line
        self._port = int(line.split()[1])
        return self

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(number)
            self._process.wait(20)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


def real() -> Place | None:
    """The real server that the environment names."""
    url = os.environ.get(REAL_URL, "")
    return Place.of(url, api_key=os.environ.get("MEMORYOS_TEST_QDRANT_API_KEY", "")) if url else None


def opener(place: Place, prefix: str) -> Opened:
    """Opens vectors on a server as `embedded_fixtures.opened` does on a directory; a directory has names of its own."""

    @asynccontextmanager
    async def opened(
        data_dir: Path,
        keys: Keys | None = None,
        *,
        dense: Mapping[str, int] = DENSE,
        fingerprint: str = "",
        analysis: int = 1,
    ) -> AsyncIterator[tuple[None, QdrantVectors]]:
        name = f"{prefix}_{re.sub(r'[^a-z0-9]', '', data_dir.name.lower())[-24:]}"
        async with QdrantVectors(
            place, keys or Keys(), dense, fingerprint=fingerprint, analysis=analysis, prefix=name
        ) as vectors:
            yield None, vectors

    return opened


def fresh_prefix() -> str:
    return f"test{secrets.token_hex(6)}"


async def clear(place: Place, prefix: str) -> None:
    """Removes the collections of a test."""
    link = QdrantLink(place, deadline=30.0)
    for one in (await link.call(link.collections.List, q.ListCollectionsRequest())).collections:
        if one.name.startswith(prefix):
            await link.call(link.collections.Delete, q.DeleteCollection(collection_name=one.name))
    await link.close()
