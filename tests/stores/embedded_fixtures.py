"""What the tests of the embedded stores share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from memoryos_server.domain.ports import IndexedTurn, Subject, Turn
from memoryos_server.stores.embedded import ChildState, EmbeddedStores
from memoryos_server.stores.sealing import Sealer
from memoryos_server.stores.vectors_edge import EdgeVectors

DENSE = {"small": 4}

OWNER = """
import asyncio, json, sys
from pathlib import Path
from memoryos_server.stores.embedded import EmbeddedStores
async def main():
    async with EmbeddedStores(Path(sys.argv[1]), {"small": 4}) as stores:
        print(json.dumps(stores.pids()), flush=True)
        await asyncio.Event().wait()
if len(sys.argv) > 2:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@dataclass
class Keys:
    """Sealers over keys in memory; `shared` gives every subject the same key, so that only filters keep them apart."""

    shared: bytes | None = None
    sealing: bool = True
    keys: dict[str, bytes] = field(default_factory=dict)

    async def sealer(self, subject: Subject) -> Sealer:
        key = self.shared or self.keys.setdefault(subject.id, os.urandom(32))
        return Sealer(key, subject.tenant_id, subject.id, sealing=self.sealing)


def subject(user: str = "ann") -> Subject:
    return Subject(uuid4().hex, "default", user, 0)


def turn(content: str = "", *, id: str = "", session: str = "s1", when: datetime | None = None, seq: int = 1) -> Turn:
    said = when or datetime(2026, 5, 4, 3, 2, 1, 123456, UTC)
    return Turn(id or str(uuid4()), uuid4().hex, session, "user", "Ann", content or uuid4().hex, said, seq)


def indexed(said: Turn, terms: Mapping[str, float] | None = None, small: Sequence[float] | None = None) -> IndexedTurn:
    words = {word: 1.0 for word in said.content.split()}
    return IndexedTurn(said, words if terms is None else terms, {} if small is None else {"small": small})


@asynccontextmanager
async def opened(
    data_dir: Path,
    keys: Keys | None = None,
    *,
    dense: Mapping[str, int] = DENSE,
    fingerprint: str = "",
    analysis: int = 1,
) -> AsyncIterator[tuple[EmbeddedStores, EdgeVectors]]:
    async with (
        EmbeddedStores(data_dir, dense, fingerprint=fingerprint) as stores,
        EdgeVectors(stores.vectors_socket, keys or Keys(), analysis=analysis) as vectors,
    ):
        yield stores, vectors


async def restarted(stores: EmbeddedStores, pid: int) -> None:
    """Waits until another process than `pid` serves the vectors."""
    await until(lambda: stores.pids().get("vectors", pid) != pid and stores.states()["vectors"] is ChildState.UP)


def owner_process(data_dir: Path, *flags: str) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    """Another process that owns a data directory, and its children's pids."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(data_dir), *flags], stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, json.loads(line)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def processes_in(directory: Path) -> list[int]:
    """The processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
    return found


async def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
