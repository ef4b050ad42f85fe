"""`python -m bench.growth`: bytes per million episodes of each store, by the slope between two sizes.

It starts a server in a folder of its own, adds turns of many users, waits until all is done, and measures: Valkey's memory and
log (rewritten first, as it rewrites itself in time), the files and the memory of the vector process. Twice; what both sizes
have in common falls out of the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from redis import Redis

from memoryos.aio import AsyncClient
from memoryos_server.stores.embedded import running_dir
from tests.system import System

_WORDS = 4000
_CLIENTS = 16
_TURNS_A_USER = 200
_GOAL = 100_000_000
_LEAVES = {
    "marks": "3 days after the last of a day",
    "recent": "`memory.short_term_ttl_seconds` after the last turn",
    "audit": "`retention.audit_days`, into the archive",
    "queue": "once it is durable on the searchable side",
    "fresh": "once it is in a segment",
    "done": "a minute later",
    "dead": "when somebody replays or discards it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.growth", description=__doc__)
    parser.add_argument("--episodes", type=int, nargs=2, default=(2_000, 6_000), metavar=("FEWER", "MORE"))
    parser.add_argument("--words", type=int, default=30, help="words of an episode (default: 30)")
    parser.add_argument("--json", action="store_true", help="a JSON object")
    args = parser.parse_args(arguments)
    fewer, more = args.episodes
    if not 0 < fewer < more:
        parser.error("--episodes needs two growing numbers")
    with tempfile.TemporaryDirectory(prefix="memoryos-growth-") as folder, System(Path(folder)) as system:
        begun = measure(system)
        add(system, 0, fewer, args.words)
        first, early = measure(system), by_kind(system)
        add(system, fewer, more, args.words)
        second, late = measure(system), by_kind(system)
    kinds = {name: (size - early.get(name, 0)) / (more - fewer) for name, size in late.items()}
    slopes = {name: (second[name] - first[name]) / (more - fewer) for name in second}
    if args.json:
        print(
            json.dumps(
                {
                    "episodes": [fewer, more],
                    "empty": begun,
                    "measured": [first, second],
                    "slope": slopes,
                    "kinds": kinds,
                }
            )
        )
        return 0
    print(f"{fewer:,} and {more:,} episodes of {args.words} words, {_TURNS_A_USER} a user\n")
    print(f"| of | empty | {fewer:,} | {more:,} | bytes an episode | GB a million | GB for {_GOAL:,} |")
    print("|---|---|---|---|---|---|---|")
    for name, slope in slopes.items():
        sizes = " | ".join(f"{one[name] / 1e6:,.1f} MB" for one in (begun, first, second))
        print(f"| {name} | {sizes} | {slope:,.0f} | {slope / 1e3:,.2f} | {slope * _GOAL / 1e9:,.0f} |")
    print("\nOf Valkey's memory, by what it is for:\n\n| keys | bytes an episode | leaves |\n|---|---|---|")
    for name, slope in sorted(kinds.items(), key=lambda one: -one[1]):
        print(f"| {name} | {slope:,.0f} | {_LEAVES.get(name, 'with its person')} |")
    print(
        "\nA million: bytes an episode x 1,000,000. A hundred million: x 100,000,000, plus what an empty store takes."
    )
    return 0


def add(system: System, start: int, end: int, words: int) -> None:
    """Adds episodes and waits until nothing is left to do."""
    picked = random.Random(start)  # noqa: S311  # words, no secret
    vocabulary = [f"{random.Random(n).choice('bdfgklmnprst')}{n:x}o" for n in range(_WORDS)]  # noqa: S311
    weights = [1 / (rank + 1) for rank in range(_WORDS)]
    texts = [" ".join(picked.choices(vocabulary, weights, k=words)) for _ in range(start, end)]

    async def run() -> None:
        numbers = iter(range(start, end))

        async def one(client: AsyncClient) -> None:
            for number in numbers:
                user, session = f"user{number // _TURNS_A_USER}", f"s{number // 20}"
                await client.add(texts[number - start], user_id=user, session_id=session)

        async with AsyncClient(system.grpc) as client:
            await asyncio.gather(*(one(client) for _ in range(_CLIENTS)))

    asyncio.run(run())
    with valkey(system) as store:
        quiet = 0
        while quiet < 30:
            busy = any(store.xlen(name) for name in store.scan_iter("{p*}:queue"))
            quiet = 0 if busy else quiet + 1
            time.sleep(0.1)


def measure(system: System) -> dict[str, int]:
    """The size of each store, in bytes."""
    with valkey(system) as store:
        store.bgrewriteaof()
        while store.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.05)
        memory = int(store.info("memory")["used_memory"])
    pids = system.children()
    return {
        "Valkey memory (used_memory)": memory,
        "Valkey log, rewritten": size(system.data / "valkey"),
        "vector files": size(system.data / "vectors"),
        "Valkey resident": resident(pids["valkey"]),
        "vector process resident": resident(pids["edge"]),
    }


def by_kind(system: System) -> dict[str, int]:
    """Valkey's memory by the kind of key, in bytes."""
    found: dict[str, int] = {}
    with valkey(system) as store:
        for name in store.scan_iter(count=1000):
            kind = name.split(b":")[1].decode()
            found[kind] = found.get(kind, 0) + int(store.memory_usage(name, samples=0) or 0)
    return found


def valkey(system: System) -> Redis:
    """The running store."""
    return Redis(unix_socket_path=str(running_dir(system.data) / "valkey.sock"))


def size(directory: Path) -> int:
    """The bytes that the files under a directory take on the disk; holes in them take none."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def resident(pid: int) -> int:
    """A process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
