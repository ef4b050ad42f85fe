from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.bridge.conftest import run_system, until

SLOW = {"count": 100, "note": "slow"}


async def test_requests_when_the_bridge_is_full_then_429_at_once_and_probes_pass() -> None:
    async with run_system(bridge={"max_concurrent_requests": 2}) as system, AsyncExitStack() as open_streams:
        for _ in range(2):
            await open_streams.enter_async_context(system.http.stream("POST", "/v1/scratch/export", json=SLOW))
        answer = await system.http.get("/v1/scratch/things/a")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "TooManyRequests"
        assert answer.json()["error"]["code"] == "too_many_requests"
        assert (await system.http.get("/v1/scratch/probe")).status_code == 200
        assert (await system.http.get("/health/live")).status_code == 200
        metrics = await system.http.get("/metrics")
        assert "memoryos_bridge_refused_total 1.0" in metrics.text
        await open_streams.aclose()
        await until(lambda: system.scratch.servicer.running == 0)
        assert (await system.http.get("/v1/scratch/things/a")).status_code != 429


async def test_requests_when_the_server_is_full_then_429_with_retry_after() -> None:
    async with run_system(max_concurrent_calls=1) as system:
        async with system.http.stream("POST", "/v1/scratch/export", json=SLOW) as stream:
            pieces = stream.aiter_bytes()
            await anext(pieces)
            answers = await asyncio.gather(*(system.http.get("/v1/scratch/things/a") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {429}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}
