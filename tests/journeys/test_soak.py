"""A mixed load for a long time, while servers, bridges and stores are killed or frozen at random."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.replicas import Replicas
from tests.system import System
from tests.valkeys import wait_for

MINUTES = float(os.environ.get("MEMORYOS_SOAK_MINUTES", "30"))
SEED = int(os.environ.get("MEMORYOS_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)

DOCUMENTED = {
    429: {"too_many_requests"},
    503: {"store_unavailable", "server_unavailable"},
    504: {"deadline_exceeded"},
}
"""The errors that an outage may show, with their codes; besides them only a connection that a killed bridge cut."""

USERS = 8
QUIET_SHARE = 1 / 3
"""The last part of the time, in which stores fail but servers and bridges live on: what a process holds is judged there."""

GROWTH_MIB_A_MINUTE = 4.0
"""How fast a process that lives through that part may grow, as the slope over the second half of its life."""


class Load:
    """Clients who each talk for one user and remember what was acknowledged."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.stop = threading.Event()
        self.accepted: dict[int, list[str]] = {user: [] for user in range(USERS)}
        self.memories: dict[int, set[str]] = {user: set() for user in range(USERS)}
        self.seen: Counter[tuple[str, int, str]] = Counter()
        self.wrong: list[Any] = []
        self._lock = threading.Lock()

    def run(self, user: int) -> None:
        """Until it is told to stop."""
        dice = random.Random(f"{SEED}-{user}")  # noqa: S311  # a load, not a secret
        number = 0
        while not self.stop.is_set():
            kind = dice.choices(("add", "retrieve", "chat", "create", "list", "sessions"), (8, 6, 2, 1, 2, 1))[0]
            if kind == "add":
                self._add(user, number)
                number += 1
            elif kind == "create":
                content = f"Rule {number}.{dice.randrange(10**9)} of {user}"
                answer = self._call(kind, user, "POST", "/v1/memories", {"content": content, "memory_type": "rule"})
                if answer is not None:
                    self.memories[user].add(answer["data"]["id"])
            elif kind == "retrieve":
                body = {"user_id": f"u{user}", "query": f"lighthouse {dice.randrange(1000)} steps"}
                self._call(kind, user, "POST", "/v1/memory/retrieve", body)
            elif kind == "chat":
                said = [{"role": "user", "content": f"How many steps has lighthouse {number}?"}]
                body = {"model": "memoryos/recall", "messages": said}
                self._call(kind, user, "POST", "/v1/chat/completions", body, {"X-MemoryOS-Memory": "read"})
            elif kind == "list":
                self._call(kind, user, "GET", "/v1/memories?page_size=5")
            else:
                self._call(kind, user, "GET", "/v1/memory/sessions?page_size=5")
            time.sleep(dice.uniform(0, 0.1))

    def _add(self, user: int, number: int) -> None:
        # An event that was begun is repeated until it is acknowledged, so that the order stays what was said.
        content = f"Traveller {user} wrote that lighthouse {number} has {number * 7} steps."
        body = {"user_id": f"u{user}", "role": "user", "content": content, "event_id": f"e{number}", "session_id": "s"}
        while self._call("add", user, "POST", "/v1/memory/add", body) is None:
            if self.stop.wait(0.2):
                return
        self.accepted[user].append(f"e{number}")

    def _call(
        self, kind: str, user: int, verb: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        code = ""
        try:
            status, answer = self.replicas.call(
                verb, path, body, {"X-User-ID": f"u{user}", **(headers or {})}, timeout=60
            )
            if status != 200:
                code = answer["error"]["code"]
        except (OSError, ValueError) as error:  # a killed bridge
            status, answer, code = 0, None, type(error).__name__
        with self._lock:
            self.seen[kind, status, code] += 1
            cut = status == 0 and code in (
                "ConnectionResetError",
                "RemoteDisconnected",
                "BrokenPipeError",
                "IncompleteRead",
            )
            if status != 200 and not cut and code not in DOCUMENTED.get(status, ()):
                self.wrong.append((kind, status, code, answer))
        return answer if status == 200 else None


class Faults:
    """One fault after the other, each of a random kind, with time to recover after it."""

    def __init__(self, replicas: Replicas, stop: threading.Event, quiet: float) -> None:
        self.replicas = replicas
        self.stop = stop
        self.quiet = quiet
        """From when on, on the monotonic clock, servers and bridges are not hit any more."""
        self.dice = random.Random(SEED)  # noqa: S311  # faults, not secrets
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        """Until it is told to stop; what was hit runs again then."""
        kinds = [
            (name, how)
            for name in ("server", "bridge", "valkey", "qdrant")
            for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
            if how is not signal.SIGTERM or name in ("server", "bridge")
        ]
        while not self.stop.wait(self.dice.uniform(3, 8)):
            name, how = self.dice.choice(kinds)
            if name in ("server", "bridge") and time.monotonic() > self.quiet:
                continue
            self.done[f"{name} {how.name}"] += 1
            seconds = self.dice.uniform(0.5, 6)
            if name in ("server", "bridge"):
                self._process(self.dice.choice(self.replicas.systems), name, how, seconds)
            else:
                self._store(name, how, seconds)

    def _process(self, system: System, name: str, how: signal.Signals, seconds: float) -> None:
        process = getattr(system, name)
        process.send_signal(how)
        if how is signal.SIGSTOP:
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            return
        process.wait(60)
        time.sleep(seconds)
        # A server that starts needs the store's keyring: no store is hit meanwhile.
        system.start(wait=False)
        system.wait_port(system.grpc)
        system.wait_port(system.http)

    def _store(self, name: str, how: signal.Signals, seconds: float) -> None:
        stores = self.replicas.stores
        store: Any = self.dice.choice(stores.nodes) if name == "valkey" else stores.qdrant
        if how is signal.SIGKILL:
            store.stop(how)
            time.sleep(seconds)
            store.start()
            return
        send = store.process.send_signal if name == "valkey" else store.send
        send(how)
        time.sleep(seconds)
        send(signal.SIGCONT)


class Memory:
    """Resident memory of servers and bridges, process by process, every two seconds."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.samples: dict[tuple[str, int], list[tuple[float, float]]] = {}

    def run(self, stop: threading.Event) -> None:
        """Until it is told to stop."""
        while not stop.wait(2):
            for number, system in enumerate(self.replicas.systems):
                for name in ("server", "bridge"):
                    process: subprocess.Popen[bytes] | None = getattr(system, name)
                    if process is not None and process.poll() is None:
                        with suppress(OSError, IndexError):
                            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                            key = (f"{name} {number}", process.pid)
                            mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                            self.samples.setdefault(key, []).append((time.monotonic() / 60, mib))

    def slopes(self) -> Iterator[tuple[str, float, float]]:
        """Process, minutes of its life, MiB a minute over the second half of it."""
        for (name, _), found in self.samples.items():
            half = found[len(found) // 2 :]
            if len(half) >= 5:
                minutes, mib = zip(*half, strict=True)
                yield name, found[-1][0] - found[0][0], statistics.linear_regression(minutes, mib).slope


@pytest.mark.long
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_mixed_load_when_anything_fails_at_random_then_only_documented_errors_and_every_event_is_accounted_for(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}, {MINUTES} minutes")
    env = {
        "MEMORYOS_EMBEDDING__MODEL": "none",
        "MEMORYOS_MEMORY__PIPELINE": "async",
        "MEMORYOS_SERVER__DRAIN_SECONDS": "1",
        "MEMORYOS_QDRANT__TIMEOUT_SECONDS": "2",
    }
    with Replicas(tmp_path, env) as replicas:
        load = Load(replicas)
        end = time.monotonic() + MINUTES * 60
        faults, memory = Faults(replicas, load.stop, end - MINUTES * 60 * QUIET_SHARE), Memory(replicas)
        with ThreadPoolExecutor(USERS + 2) as pool:
            clients = [pool.submit(load.run, user) for user in range(USERS)]
            others = [pool.submit(faults.run), pool.submit(memory.run, load.stop)]
            try:
                while time.monotonic() < end and not load.wrong and not any(one.done() for one in (*clients, *others)):
                    time.sleep(1)
            finally:
                load.stop.set()
            for one in (*clients, *others):
                one.result()
        for (kind, status, code), count in sorted(load.seen.items()):
            print(f"{kind:9} {status:3} {code:20} {count}")
        print("faults:", dict(faults.done))
        slopes = list(memory.slopes())
        print("memory:", [f"{name}: {slope:+.2f} MiB/min in {life:.1f} min" for name, life, slope in slopes])
        assert not load.wrong, load.wrong[:5]
        _check(replicas, load)
        if MINUTES >= 15:  # else none lives long enough to tell growth from warming up
            long_lived = [slope for _, life, slope in slopes if life >= 0.9 * MINUTES * QUIET_SHARE]
            assert len(long_lived) >= 4, "both servers and both bridges"
            assert all(slope < GROWTH_MIB_A_MINUTE for slope in long_lived), slopes


def _check(replicas: Replicas, load: Load) -> None:
    for system in replicas.systems:
        system.wait_ready()
    wait_for(lambda: replicas.stores.open_entries() == 0, 180, "the end of all work")
    for user, accepted in load.accepted.items():
        assert accepted
        found = replicas.session(f"u{user}")
        # The last one may have been accepted without the client having heard of it.
        assert found[: len(accepted)] == accepted, (user, [e for e in accepted if e not in found][:5])
        assert len(found) <= len(accepted) + 1
        replicas.check_ended(f"u{user}", found)
        kept: set[str] = set()
        number = 0
        while True:
            number += 1
            me = {"X-User-ID": f"u{user}"}
            status, page = replicas.call("GET", f"/v1/memories?page_size=100&page={number}", None, me)
            assert status == 200, page
            if not page["data"]["memories"]:
                break
            kept |= {one["id"] for one in page["data"]["memories"]}
        assert load.memories[user] <= kept, f"{len(load.memories[user] - kept)} memories of {user} are gone"
    print(
        "accounted for:",
        sum(map(len, load.accepted.values())),
        "events,",
        sum(map(len, load.memories.values())),
        "memories",
    )
