"""How each number is taken."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.gateway.caller import Caller, connect, request
from bench.gateway.targets import Target


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(frozen=True)
class Spent:
    """Calls or events that were answered, in how many seconds, with how much processor time of the target (seconds)."""

    done: int
    seconds: float
    processor: float

    @property
    def each(self) -> float:
        """Processor time of one, in seconds."""
        return self.processor / self.done


async def latencies(target: Target, calls: int, content: str = "How are you?") -> list[float]:
    """The seconds of calls, one after the other on one connection."""
    (caller,) = await connect(target.address)
    asked = request(content, target.headers)
    try:
        return [await caller.call(asked) for _ in range(calls)]
    finally:
        caller.close()


async def throughput(target: Target, seconds: float, at_once: int) -> Spent:
    """As many JSON calls as it answers."""
    callers = await connect(target.address, at_once)
    asked = request("How are you?", target.headers)
    before, begin = target.processor(), time.perf_counter()

    async def repeat(caller: Caller) -> int:
        done = 0
        while time.perf_counter() - begin < seconds:
            await caller.call(asked)
            done += 1
        return done

    done = sum(await asyncio.gather(*map(repeat, callers)))
    taken, processor = time.perf_counter() - begin, target.processor() - before
    for caller in callers:
        caller.close()
    return Spent(done, taken, processor)


async def streams(
    target: Target, number: int, events: int, rate: int, spread: float = 0.0
) -> tuple[Spent, list[float]]:
    """So many streams at once, begun within `spread` seconds; also how long each event took from provider to client.

    Raises:
        RuntimeError: events are missing.
    """
    callers = await connect(target.address, number)
    asked = request(f"events={events} rate={rate}", target.headers, stream=True)
    before, begin = target.processor(), time.perf_counter()

    async def one(place: int, caller: Caller) -> None:
        await asyncio.sleep(spread * place / number)
        await caller.call(asked)

    gc.disable()  # a pause of ours would look like one of theirs
    try:
        await asyncio.gather(*(one(n, c) for n, c in enumerate(callers)))
    finally:
        gc.enable()
    spent = Spent(number * events, time.perf_counter() - begin, target.processor() - before)
    held = [seconds for caller in callers for seconds in caller.held]
    for caller in callers:
        caller.close()
    if len(held) != number * events:
        raise RuntimeError(f"{target.name}: {len(held)} of {number * events} events came")
    return spent, held


async def many(target: Target, number: int, events: int, at_once: int) -> None:
    """So many short streams, some at once, each on a connection of its own."""
    asked = request(f"events={events} rate=0", target.headers, stream=True)
    left = iter(range(number))

    async def worker() -> None:
        for _ in left:
            (caller,) = await connect(target.address)
            await caller.call(asked)
            caller.close()

    await asyncio.gather(*(worker() for _ in range(at_once)))
