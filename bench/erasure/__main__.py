"""`python -m bench.erasure`: what others wait while somebody is erased and the stores rewrite their files.

It adds episodes of many users to a server of its own, then calls without a pause, from a thread each: health, a retrieve and
an add. First with nothing else to do, then from an erasure until its certificate says that the files of both stores are
rewritten. Several rounds, each with somebody else's erasure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.growth.__main__ import add
from memoryos import Client
from tests.system import System

LIMIT_MS = 250
"""Nobody may wait longer."""

_QUIET_SECONDS = 10.0
_OWN = 200
"""Episodes of each person who is erased."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.erasure", description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000, help="episodes of others (default: 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="erasures (default: 3)")
    parser.add_argument("--json", action="store_true", help="a JSON object")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="memoryos-erasure-") as folder, System(Path(folder)) as system:
        add(system, 0, args.episodes, 30)
        rounds = [measured(system, f"erased{number}") for number in range(args.rounds)]
    if args.json:
        print(json.dumps({"episodes": args.episodes, "limit_ms": LIMIT_MS, "rounds": rounds}))
        return 0
    print(f"{args.episodes:,} episodes; milliseconds that a caller waited\n")
    print("| round | while | lasts s | call | calls | p50 | p99 | longest | over 250 ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, one in enumerate(rounds, 1):
        for phase, (seconds, calls) in one.items():
            for name, took in calls.items():
                spread = f"{at(took, 0.5):.1f} | {at(took, 0.99):.1f} | {took[-1]:.1f}"
                over = sum(each > LIMIT_MS for each in took)
                print(f"| {number} | {phase} | {seconds:.0f} | {name} | {len(took):,} | {spread} | {over} |")
    return 0


def measured(system: System, user: str) -> Mapping[str, tuple[float, Mapping[str, list[float]]]]:
    """What calls take without and with an erasure: phase -> seconds, and call -> milliseconds of each, the shortest first."""
    with Client(system.grpc) as client:
        for number in range(_OWN):
            client.add(f"{user} remembers day {number} and what was for lunch", user_id=user)
    found = {}
    with Calls(system) as calls:
        time.sleep(_QUIET_SECONDS)
    found["nothing else"] = calls.result()
    with Calls(system) as calls:
        status, made, _ = system.post("/v1/security/gdpr/delete", {"user_id": user})
        if status != 200 or made["status"] != "ok":
            raise SystemExit(f"the erasure failed: {made}")
        path = f"/v1/security/gdpr/certificates/{made['certificate_id']}"
        while not system.get(path)[1]["certificate"].get("compacted_at"):
            time.sleep(0.5)
    found["an erasure"] = calls.result()
    return found


class Calls:
    """A thread for each kind of call, for as long as the context lasts."""

    def __init__(self, system: System) -> None:
        self._address = system.grpc
        self._over = threading.Event()
        self._took: dict[str, list[float]] = {"health": [], "retrieve": [], "add": []}
        self._failed: list[BaseException] = []
        self._begun = self._seconds = 0.0
        self._threads = [threading.Thread(target=self._call, args=(name,)) for name in self._took]

    def __enter__(self) -> Calls:
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._seconds = time.monotonic() - self._begun
        if self._failed:
            raise self._failed[0]

    def result(self) -> tuple[float, Mapping[str, list[float]]]:
        """Seconds, and call -> milliseconds of each, the shortest first."""
        return self._seconds, {name: sorted(took) for name, took in self._took.items()}

    def _call(self, name: str) -> None:
        with Client(self._address, user_id="user1") as client:
            ways: dict[str, Callable[[], object]] = {
                "health": client.health,
                "retrieve": lambda: client.retrieve("what was painted"),
                "add": lambda: client.add(f"at {time.monotonic_ns()} somebody came by"),
            }
            try:
                while not self._over.is_set():
                    begun = time.perf_counter()
                    ways[name]()
                    self._took[name].append((time.perf_counter() - begun) * 1000)
                    time.sleep(0.005)
            except BaseException as error:  # raised where the context ends
                self._failed.append(error)
                self._over.set()


def at(took: Sequence[float], share: float) -> float:
    """The value below which a share of sorted ones lies."""
    return took[min(len(took) - 1, int(len(took) * share))]


if __name__ == "__main__":
    raise SystemExit(main())
