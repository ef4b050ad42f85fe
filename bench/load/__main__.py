"""`python -m bench.load`: add and retrieve, over gRPC and over the bridge, as multiples of a raw echo RPC.

Server, bridge and echo are processes of their own; this process is the client. Every round measures every target in another
order, so that a slow minute of the machine hits all alike; the figures are medians over the rounds. Milliseconds depend on
the machine; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc
import uvloop

from bench.load import echo
from memoryos import AsyncClient
from memoryos.v1 import memory_service_pb2
from tests.system import System, free_port

Call = Callable[[int], Awaitable[object]]
"""Makes one call; the number makes it differ from the others."""

SUBJECTS = ("coffee", "the harbour", "my sister Eva", "the red bicycle", "our budget", "the flight to Porto", "chess")
VERBS = ("I like", "I forgot about", "tell me more on", "yesterday we discussed", "please remember", "I am tired of")
YARDSTICK = "echo"


@dataclass(frozen=True, slots=True)
class Figure:
    """One target at one concurrency, medians over the rounds.

    Attributes:
        target: What was called.
        concurrency: How many calls were under way at a time.
        p50: Milliseconds.
        p99: Milliseconds.
        rate: Calls per second.
        ratio: p50 in multiples of the echo's.
    """

    target: str
    concurrency: int
    p50: float
    p99: float
    rate: float
    ratio: float


def sentence(number: int) -> str:
    """A sentence that no other number makes."""
    return f"{VERBS[number % len(VERBS)]} {SUBJECTS[number // 6 % len(SUBJECTS)]}, note {number}"


async def measure(call: Call, first: int, calls: int, concurrency: int) -> tuple[list[float], float]:
    """The seconds of each of `calls` calls, and of all."""
    numbers = iter(range(first, first + calls))
    taken: list[float] = []

    async def worker() -> None:
        for number in numbers:
            started = time.perf_counter()
            await call(number)
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return sorted(taken), time.perf_counter() - started


async def targets(stack: AsyncExitStack, system: System, echo_address: str) -> dict[str, Call]:
    """Every target by its name."""
    client = await stack.enter_async_context(AsyncClient(system.grpc, user_id="bench"))
    connector = aiohttp.TCPConnector(limit=0)
    http = await stack.enter_async_context(aiohttp.ClientSession(system.url, connector=connector))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(echo_address))
    method: Any = channel.unary_unary(echo.PATH)

    async def post(path: str, body: dict[str, object]) -> None:
        async with http.post(path, json={"user_id": "bench", **body}) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {text[:200]!r}")

    async def call_echo(number: int) -> None:
        request = memory_service_pb2.RetrieveMemoryRequest(user_id="bench", query=sentence(number))
        await method(request.SerializeToString(), wait_for_ready=True, timeout=20)

    return {
        YARDSTICK: call_echo,
        "retrieve, gRPC": lambda n: client.retrieve(sentence(n)),
        "retrieve, bridge": lambda n: post("/v1/memory/retrieve", {"query": sentence(n)}),
        "add, gRPC": lambda n: client.add(sentence(n)),
        "add, bridge": lambda n: post("/v1/memory/add", {"role": "user", "content": sentence(n)}),
    }


async def run(system: System, echo_address: str, args: argparse.Namespace) -> list[Figure]:
    """Measures everything."""
    async with AsyncExitStack() as stack:
        calls = await targets(stack, system, echo_address)
        number = 1
        await measure(calls["add, gRPC"], number, args.turns, 8)
        number += args.turns
        for call in calls.values():
            await measure(call, number, args.calls // 2, 4)
            number += args.calls
        found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        names = list(calls)
        for turn in range(args.rounds):
            for concurrency in args.concurrency:
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    taken, whole = await measure(calls[name], number, args.calls, concurrency)
                    number += args.calls
                    p50, p99 = taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)]
                    found.setdefault((name, concurrency), []).append((p50 * 1e3, p99 * 1e3, len(taken) / whole))
    medians = {key: [median(values) for values in zip(*rows, strict=True)] for key, rows in found.items()}
    return [
        Figure(name, concurrency, p50, p99, rate, p50 / medians[YARDSTICK, concurrency][0])
        for (name, concurrency), (p50, p99, rate) in medians.items()
    ]


def main() -> None:
    """Starts everything, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300, help="calls per target, concurrency and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1000, help="turns that are there before the measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    address = f"127.0.0.1:{free_port()}"
    yardstick = subprocess.Popen([sys.executable, "-m", "bench.load.echo", address])
    try:
        with tempfile.TemporaryDirectory(prefix="memoryos-bench-") as home, System(Path(home)) as system:
            figures = uvloop.run(run(system, address, args))
    finally:
        yardstick.kill()
        yardstick.wait()
    print(f"{args.turns} turns, {args.rounds} rounds of {args.calls} calls; medians")
    print(f"{'target':<18}{'at a time':>10}{'p50 ms':>9}{'p99 ms':>9}{'calls/s':>9}{'x echo':>8}")
    for f in sorted(figures, key=lambda f: (f.concurrency, f.ratio)):
        print(f"{f.target:<18}{f.concurrency:>10}{f.p50:>9.2f}{f.p99:>9.2f}{f.rate:>9.0f}{f.ratio:>8.1f}")
    if args.json:
        args.json.write_text(json.dumps([asdict(f) for f in figures], indent=2))


if __name__ == "__main__":
    main()
