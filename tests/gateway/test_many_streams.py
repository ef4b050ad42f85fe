"""A thousand streams at once, again and again: what they leave behind in the memory of bridge and server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from bench.gateway.measure import streams
from bench.gateway.targets import MEMORY_OFF, Target
from scripts.generate import ROOT
from tests.system import System, free_port

AT_ONCE, ROUNDS = 1_000, 10
EVENTS, RATE = 10, 1
GROWTH_MIB = 5.0
REST_SECONDS = 32
"""Longer than connections to a provider are kept for later calls: fifteen seconds, and up to as many until that is looked at."""


async def in_flight(system: System) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{system.url}/metrics") as answer:
        found = re.search(r"^memoryos_bridge_requests_in_flight (\S+)", await answer.text(), re.MULTILINE)
        assert found
        return int(float(found[1]))


async def under_way(system: System, target: Target) -> int:
    """Has all streams under way, and all of them to their end; gives how many were seen at one time."""
    running = asyncio.create_task(streams(target, AT_ONCE, EVENTS, RATE))
    most = 0
    while not running.done():
        most = max(most, await in_flight(system))
        await asyncio.sleep(1)
    await running
    return most


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_streams_when_a_thousand_run_at_once_ten_times_over_then_memory_does_not_grow(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "provider-key",
        # What is looked at is what they hold, not what the C library keeps for the next allocation.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "MALLOC_MMAP_THRESHOLD_": "131072",
        # The bounds are those of what runs at once; a call may end a moment after its answer.
        "MEMORYOS_BRIDGE__MAX_CONCURRENT_REQUESTS": str(2 * AT_ONCE),
        "MEMORYOS_SERVER__MAX_CONCURRENT_CALLS": str(2 * AT_ONCE),
    }
    command = [sys.executable, "-m", "bench.gateway.provider", str(port)]
    provider = subprocess.Popen(command, cwd=ROOT)  # noqa: ASYNC220  # nothing else runs yet
    try:
        with System(tmp_path, settings) as system:
            assert system.bridge is not None
            assert system.server is not None
            pids = {"bridge": system.bridge.pid, "server": system.server.pid}
            target = Target("ours", system.http, pids, MEMORY_OFF)
            most = await under_way(system, target)
            await asyncio.sleep(REST_SECONDS)
            seen = [target.resident()]
            for number in range(ROUNDS):
                await streams(target, AT_ONCE, EVENTS, RATE)
                seen.append(target.resident())
                print(number + 1, {name: f"{mib - seen[0][name]:+.1f} MiB" for name, mib in seen[-1].items()})
            await asyncio.sleep(REST_SECONDS)
            seen.append(target.resident())
            files = {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}
    finally:
        provider.kill()
        provider.wait()
    print(f"at once: {most}; MiB before: {seen[0]}, after: {seen[-1]}; open files: {files}")
    assert most > 0.9 * AT_ONCE
    # Memory goes up and down with what allocators keep; what is lost for good lifts the least of it, too.
    half = len(seen) // 2
    grown = {name: min(at[name] for at in seen[half:]) - min(at[name] for at in seen[:half]) for name in pids}
    print(f"the least of the second half, beside that of the first: {grown}")
    assert 2 * max(grown.values()) <= GROWTH_MIB, grown
