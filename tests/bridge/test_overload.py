from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx

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


async def body_that_waits(end: asyncio.Event) -> AsyncIterator[bytes]:
    """A body that has begun and comes no further until it may."""
    yield b"{"
    await end.wait()
    yield b"}"


async def test_requests_when_one_address_sends_slow_bodies_then_others_are_served() -> None:
    # The test's own address is the proxy: what it says in X-Forwarded-For are the clients.
    bridge = {"max_concurrent_requests": 8, "trusted_proxies": ("127.0.0.1", "10.9.0.0/16")}
    async with run_system(bridge=bridge) as system, AsyncExitStack() as stack:
        slow = {"X-Forwarded-For": "203.0.113.7", "Content-Type": "application/json"}
        end = asyncio.Event()
        held = [
            asyncio.ensure_future(system.http.post("/v1/scratch/export", content=body_that_waits(end), headers=slow))
            for _ in range(2)
        ]
        stack.callback(end.set)

        async def asked(address: str, path: str = "/v1/scratch/things/a") -> httpx.Response:
            return await system.http.get(path, headers={"X-Forwarded-For": address})

        # Both, and the one that asks.
        while "memoryos_bridge_requests_in_flight 3.0" not in (await system.http.get("/metrics")).text:
            pass
        refused = await asked("203.0.113.7")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("TooManyRequests", "too_many_requests")
        assert "2 requests" in error["message"]
        assert "bridge.address_share" in error["details"]
        assert (await asked("203.0.113.7", "/v1/scratch/probe")).status_code == 200
        for other in ("203.0.113.8", "2001:db8::1", "127.0.0.1", "10.9.1.1"):
            assert (await asked(other)).status_code != 429, other
        metrics = (await system.http.get("/metrics")).text
        assert "memoryos_bridge_address_refused_total 1.0" in metrics
        # All of the bridge is not full, which is what the alert is about.
        assert "memoryos_bridge_refused_total 0.0" in metrics
        end.set()
        await asyncio.gather(*held)
        assert (await asked("203.0.113.7")).status_code != 429


async def test_requests_when_one_network_of_ipv6_sends_them_from_many_addresses_then_they_count_as_one() -> None:
    bridge = {"max_concurrent_requests": 8, "trusted_proxies": ("127.0.0.1",)}
    async with run_system(bridge=bridge) as system, AsyncExitStack() as open_streams:
        for last in range(2):
            stream = system.http.stream(
                "POST", "/v1/scratch/export", json=SLOW, headers={"X-Forwarded-For": f"2001:db8::{last:x}"}
            )
            await open_streams.enter_async_context(stream)
        again = await system.http.get("/v1/scratch/things/a", headers={"X-Forwarded-For": "2001:db8::ffff"})
        assert again.status_code == 429
        beside = await system.http.get("/v1/scratch/things/a", headers={"X-Forwarded-For": "2001:db8:0:1::1"})
        assert beside.status_code != 429


async def test_requests_when_they_come_over_loopback_then_they_may_have_all() -> None:
    async with run_system(bridge={"max_concurrent_requests": 4}) as system, AsyncExitStack() as open_streams:
        for _ in range(4):
            answer = await open_streams.enter_async_context(system.http.stream("POST", "/v1/scratch/export", json=SLOW))
            assert answer.status_code == 200
