"""`python -m bench.gateway`: what the chat gateway adds to a call, beside LiteLLM's proxy and a bare pass-through.

Everything runs in one run, in turns: what is measured on one core, provider and client on another. LiteLLM has a Python of its
own (`--litellm PYTHON`, in whose environment `litellm[proxy]` is); without it, the others are measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

import uvloop

from bench.gateway import targets
from bench.gateway.measure import latencies, many, quantile, streams, throughput
from bench.gateway.targets import Target
from bench.peers.__main__ import load, quiet
from bench.peers.corpus import questions, sentences
from memoryos import AsyncClient
from tests.system import System

USER = "bench"
PACED_STREAMS, PACED_RATE = 200, 50


def row(name: str, target: str, seen: str, aim: str = "", good: bool | None = None) -> None:
    """Prints a line of the table."""
    mark = "" if good is None else " =" if good else " **missed**"
    print(f"| {name} | {target} | {seen} | {aim}{mark} |", flush=True)


def of_rounds(values: Sequence[float]) -> str:
    """The median, and in brackets the least and the most."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


async def latency(all_of: Sequence[Target], calls: int, rounds: int) -> None:
    """Added latency with memory off, a call at a time."""
    p50: dict[str, list[float]] = {target.name: [] for target in all_of}
    p99: dict[str, list[float]] = {target.name: [] for target in all_of}
    for target in all_of:
        await latencies(target, calls // 4)
    for _ in range(rounds):
        for target in all_of:
            taken = await latencies(target, calls)
            p50[target.name].append(1e3 * quantile(taken, 0.5))
            p99[target.name].append(1e3 * quantile(taken, 0.99))
    base = all_of[0].name
    for found, name, aim in ((p50, "p50", 2.0), (p99, "p99", 6.0)):
        for target in all_of[1:]:
            added = [a - b for a, b in zip(found[target.name], found[base], strict=True)]
            own = target.name == "ours"
            row(
                f"added {name}, ms",
                target.name,
                of_rounds(added),
                f"<= {aim:g}" * own,
                median(added) <= aim if own else None,
            )


async def requests(all_of: Sequence[Target], seconds: float, rounds: int) -> None:
    """Requests per second of a core."""
    found: dict[str, list[float]] = {target.name: [] for target in all_of}
    for _ in range(rounds):
        for target in all_of:
            found[target.name].append(1 / (await throughput(target, seconds, 32)).each)
    for target in all_of:
        row("JSON requests per second of a core", target.name, f"{median(found[target.name]):.0f}")
    if "LiteLLM" in found:
        ratios = [a / b for a, b in zip(found["ours"], found["LiteLLM"], strict=True)]
        row("the same, in multiples of LiteLLM's", "ours", of_rounds(ratios), ">= 8", median(ratios) >= 8)


async def unpaced(all_of: Sequence[Target], events: int, rounds: int) -> None:
    """Processor time of an event when they come as fast as they are taken."""
    found: dict[str, list[float]] = {target.name: [] for target in all_of}
    for _ in range(rounds):
        for target in all_of:
            spent, _held = await streams(target, 4, events if target.name != "LiteLLM" else events // 8, 0)
            found[target.name].append(1e6 * spent.each)
    for target in all_of:
        own = target.name == "ours"
        each = found[target.name]
        row(
            "CPU per event, unpaced, us",
            target.name,
            of_rounds(each),
            "<= 60" * own,
            median(each) <= 60 if own else None,
        )


async def paced(all_of: Sequence[Target], seconds: float, rounds: int) -> None:
    """The same at a steady pace, and how long an event is on its way."""
    found: dict[str, list[float]] = {target.name: [] for target in all_of}
    held: dict[str, list[float]] = {target.name: [] for target in all_of}
    for _ in range(rounds):
        for target in all_of:
            events = int(PACED_RATE * seconds)
            spent, seen = await streams(target, PACED_STREAMS, events, PACED_RATE, spread=1.0)
            found[target.name].append(1e6 * spent.each)
            held[target.name] += seen
    name = f"{PACED_STREAMS} streams x {PACED_RATE} events/s"
    for target in all_of:
        if target.pids:
            row(f"CPU per event, {name}, us", target.name, of_rounds(found[target.name]))
        p50, p99, most = (1e3 * quantile(held[target.name], share) for share in (0.5, 0.99, 1.0))
        own = target.name == "ours"
        row(
            f"an event on its way, {name}: p50, p99, most, ms",
            target.name,
            f"{p50:.2f}, {p99:.2f}, {most:.2f}",
            "most <= 2" * own,
            most <= 2 if own else None,
        )
    if "LiteLLM" in found:
        ratios = [a / b for a, b in zip(found["ours"], found["LiteLLM"], strict=True)]
        row("CPU per event, in parts of LiteLLM's", "ours", of_rounds(ratios), "<= 0.25", median(ratios) <= 0.25)


async def growth(target: Target, warm_up: int, more: int) -> None:
    """What many streams leave behind."""
    await many(target, warm_up, 20, 50)
    before = target.resident()
    await many(target, more, 20, 50)
    for name, now in target.resident().items():
        grown = now - before[name]
        row(f"MiB more after {more:,} streams", f"ours, {name}", f"{grown:.1f} of {now:.0f}", "<= 5", grown <= 5)


async def with_memory(system: System, off: Target, base: Target, memories: int, calls: int, rounds: int) -> None:
    """Added latency with memory on, another question each time."""
    async with AsyncClient(system.grpc, user_id=USER) as client:
        await load(client, USER, list(islice(sentences(memories), memories)))
    await quiet(system)
    on = dataclasses.replace(off, headers={"X-User-ID": USER, "X-MemoryOS-Memory": "read"})

    async def asking(target: Target, seed: int) -> list[float]:
        found: list[float] = []
        for question in questions(calls, seed=seed):
            found += await latencies(target, 1, question)
        return found

    added = []
    for number in range(rounds):
        direct = quantile(await asking(base, number), 0.5)
        added.append(1e3 * (quantile(await asking(on, number), 0.5) - direct))
    row(f"added p50, memory on, {memories:,} memories, ms", "ours", of_rounds(added), "<= 6", median(added) <= 6)


def measures(args: argparse.Namespace, all_of: Sequence[Target], system: System) -> Iterator[tuple[str, object]]:
    """Every measure by name, in its order."""
    proxies, own = all_of[1:], all_of[-1]
    yield "latency", latency(all_of, args.calls, args.rounds)
    yield "requests", requests(proxies, args.seconds, args.rounds)
    yield "unpaced", unpaced(proxies, args.events, args.rounds)
    yield "paced", paced(all_of, args.seconds, args.rounds)
    yield "growth", growth(own, args.warm_up, args.streams)
    yield "memory", with_memory(system, own, all_of[0], args.memories, args.calls // 5, args.rounds)


async def run(args: argparse.Namespace, all_of: Sequence[Target], system: System) -> None:
    """Measures and prints."""
    print("| number | of | seen: median of rounds (least to most) | aim |\n|---|---|---|---|", flush=True)
    for name, measure in measures(args, all_of, system):
        assert asyncio.iscoroutine(measure)
        if not args.only or name in args.only:
            await measure
        else:
            measure.close()


def main() -> None:
    """Starts everything, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--litellm", metavar="PYTHON", help="a Python that has litellm[proxy]; none: no peer")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="latency requests unpaced paced growth memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1_000, help="calls a round, for latency")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load a round")
    parser.add_argument("--events", type=int, default=20_000, help="of each unpaced stream; LiteLLM gets an eighth")
    parser.add_argument("--warm-up", type=int, default=1_000, help="streams before memory is looked at")
    parser.add_argument("--streams", type=int, default=10_000, help="streams that it may grow in")
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="of what is measured; of all else")
    args = parser.parse_args()
    core, other = args.cores
    begin = time.monotonic()
    os.sched_setaffinity(0, {other})
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memoryos-bench-")))
        base = stack.enter_context(targets.provider(other))
        all_of = [base, stack.enter_context(targets.passthrough(base.address, core))]
        if args.litellm:
            all_of.append(stack.enter_context(targets.litellm(args.litellm, base.address, home, core)))
        system, own = stack.enter_context(targets.ours(base.address, home / "ours", core))
        uvloop.run(run(args, [*all_of, own], system))
    print(f"\n{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
