"""kill -9 of everything, while events are added: what was acknowledged is there, once."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import memoryos
from tests.system import System


class Writer:
    """Adds `total` events from several threads, repeating what was not acknowledged, with the same event ids."""

    def __init__(self, system: System, total: int, *, http: bool) -> None:
        self.system = system
        self.user = f"kill-{uuid.uuid4()}"
        self.acknowledged: set[int] = set()
        self.total = total
        self.http = http
        self.first = threading.Event()
        self._lock = threading.Lock()

    def _one(self, n: int) -> None:
        content = f"Entry number {n} of the log book tells of ship {n * 7919}."
        for _ in range(400):
            try:
                if self.http:
                    body = {"user_id": self.user, "role": "user", "content": content, "event_id": f"e{n}"}
                    status, answer, _ = self.system.call("POST", "/v1/memory/add", body, timeout=10)
                    if status != 200:
                        raise OSError(answer)
                else:
                    self.client.add(content, user_id=self.user, event_id=f"e{n}")
            except (OSError, memoryos.MemoryOSError):
                time.sleep(0.05)
                continue
            with self._lock:
                self.acknowledged.add(n)
                if len(self.acknowledged) > self.total // 5:
                    self.first.set()
            return

    def run(self) -> None:
        with memoryos.Client(self.system.grpc) as self.client, ThreadPoolExecutor(8) as pool:
            list(pool.map(self._one, range(self.total)))

    def check(self) -> None:
        # What was not durable on the searchable side is written there again in the background, after the restart.
        end = time.monotonic() + 30
        missing = {"?"}
        with memoryos.Client(self.system.grpc) as client:
            while missing and time.monotonic() < end:
                found = client.retrieve("log book ship entry", user_id=self.user, limit=1000)
                ids = Counter(episode.event_id for episode in found.episodes)
                assert max(ids.values(), default=1) == 1
                missing = {f"e{n}" for n in self.acknowledged} - set(ids)
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} acknowledged events are gone"
        assert len(self.acknowledged) == self.total


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["server", "bridge", "valkey", "edge", "group"])
def test_kill_minus_nine_when_adding_then_every_acknowledged_event_is_there_once(system: System, victim: str) -> None:
    writer = Writer(system, 1000, http=victim == "bridge")
    thread = threading.Thread(target=writer.run)
    thread.start()
    assert writer.first.wait(60)
    if victim == "group":
        system.kill(group=True)
        system.start()
    elif victim in ("valkey", "edge"):
        system.kill_store(victim)
    else:
        process = system.server if victim == "server" else system.bridge
        assert process is not None
        process.kill()
        process.wait()
        system.start()
    thread.join(180)
    assert not thread.is_alive()
    system.wait_ready()
    writer.check()


@pytest.mark.embedded("puts the vector files back, which are somebody else's if they are live")
def test_vector_files_when_put_back_to_their_last_flush_then_everything_is_there(tmp_path: Path) -> None:
    # Flushing seldom makes the window wide: what was added since the copy is only in Valkey's log.
    with System(tmp_path, {"MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "600"}) as system:
        first = Writer(system, 60, http=False)
        first.run()
        system.stop()  # flushes
        shutil.copytree(system.data / "vectors", tmp_path / "copy")
        system.start()
        second = Writer(system, 60, http=False)
        second.user = first.user
        second._one = lambda n, one=second._one: one(n + 60)  # type: ignore[method-assign]
        second.run()
        system.kill(group=True)
        shutil.rmtree(system.data / "vectors")
        shutil.copytree(tmp_path / "copy", system.data / "vectors")
        system.start()
        second.acknowledged |= first.acknowledged
        second.total = 120
        second.check()
