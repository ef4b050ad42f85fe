"""A thousand streams held for a minute, of which two hundred clients leave at some moment: nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.conftest import until
from tests.system import System, free_port
from tests.upstream import Reply, Sleep, Upstream, delta, sse

STREAMS, LEAVING, SECONDS = 1_000, 200, 60
GAUGES = ("memoryos_bridge_requests_in_flight", "memoryos_rpc_in_flight")


SPARE = 5
"""Sockets that come and go with calls to the stores and for the metrics."""


def clients() -> aiohttp.ClientSession:
    """Clients, each with a connection of its own."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


def sockets(pid: int) -> int:
    """How many sockets a process has."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


async def in_flight(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """What bridge and server have under way, the call for the metrics left out."""
    async with session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = {name: sum(int(float(n)) for n in re.findall(rf"^{name}(?:{{.*}})? (\S+)", text, re.M)) for name in GAUGES}
    return {name: number - 1 for name, number in found.items()}


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_streams_when_a_thousand_are_held_and_two_hundred_clients_leave_then_nothing_is_left(
    tmp_path: Path,
) -> None:
    port = free_port()
    settings = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "MEMORYOS_BRIDGE__MAX_CONCURRENT_REQUESTS": str(2 * STREAMS),
        "MEMORYOS_SERVER__MAX_CONCURRENT_CALLS": str(2 * STREAMS),
    }
    frames = sse(*[delta(f"{number} ") for number in range(SECONDS)], delta("end", "stop"))
    steps = [step for frame in frames[:-2] for step in (frame, Sleep(1.0))] + frames[-2:]
    moments = random.Random(7)  # noqa: S311  # no secret
    async with Upstream(None, port) as upstream:
        with System(tmp_path, settings) as system:
            assert system.bridge is not None
            assert system.server is not None
            pids = (system.bridge.pid, system.server.pid)
            upstream.will(*[Reply(body=steps, content_type="text/event-stream")] * (STREAMS + 1))

            async def one(session: aiohttp.ClientSession, patience: float | None) -> str:
                sent = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "count"}]}
                headers = {"X-MemoryOS-Memory": "off"}
                async with session.post(f"{system.url}/v1/chat/completions", json=sent, headers=headers) as answer:
                    assert answer.status == 200
                    try:
                        async with asyncio.timeout(patience):
                            return "whole" if await answer.read() == b"".join(frames) else "broken"
                    except TimeoutError:
                        answer.close()
                        return "left"

            async with clients() as session:
                await one(session, 1.0)
            await until(lambda: upstream.open == 0, 60)
            before = [sockets(pid) for pid in pids]
            patience = [moments.uniform(1, SECONDS - 5) for _ in range(LEAVING)]
            async with clients() as session:
                ends = await asyncio.gather(*[one(session, at) for at in [*patience, *[None] * (STREAMS - LEAVING)]])
            assert Counter(ends) == {"whole": STREAMS - LEAVING, "left": LEAVING}
            assert len(upstream.received) == STREAMS + 1
            # Connections to the provider are kept for a moment, for calls to come.
            await until(lambda: upstream.open == 0, 60)
            async with clients() as session:
                flying = await in_flight(session, system.url)
            after = [sockets(pid) for pid in pids]
    print(f"sockets of bridge and server before {before}, after {after}; under way {flying}")
    assert flying == dict.fromkeys(GAUGES, 0)
    assert all(late <= early + SPARE for late, early in zip(after, before, strict=True))
