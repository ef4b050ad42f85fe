"""Streaming through bridge and server as real processes: first tokens at once, bytes unchanged, nobody left behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.system import System
from tests.upstream import Gate, Reply, Upstream, completion, delta, sse


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream) -> AsyncIterator[System]:
    system = System(tmp_path, {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "provider-key"})
    await asyncio.to_thread(system.start)
    try:
        yield system
    finally:
        await asyncio.to_thread(system.__exit__)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-test", "messages": [{"role": "user", "content": "tell me"}], **more}


async def test_stream_when_upstream_is_gated_then_first_token_leaves_before_the_second_is_sent(
    gateway: System, upstream: Upstream
) -> None:
    frames = sse(delta("one "), delta("two"), delta(None, "stop"))
    gate = Gate()
    upstream.will(Reply(content_type="text/event-stream", body=[frames[0], gate, *frames[1:]]))
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{gateway.url}/v1/chat/completions", json=body(stream=True), headers={"X-User-ID": "ada"}
        ) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["X-MemoryOS-Remembered"] == "pending"
        first = await asyncio.wait_for(answer.content.readany(), 5)
        assert first == frames[0]
        assert gate.reached.is_set()
        gate.open()
        rest = await answer.content.read()
    assert first + rest == b"".join(frames)


async def until_closed(gateway: System, upstream: Upstream, *, stream: bool) -> float:
    """Seconds from a client's leaving to the end of the upstream's connection."""
    gate = Gate()
    if stream:
        upstream.will(Reply(content_type="text/event-stream", body=[sse(delta("one "))[0], gate]))
    else:
        upstream.will(Reply(before=[gate], body=[completion("never")]))
    reader, writer = await asyncio.open_connection(*gateway.http.rsplit(":", 1))
    payload = json.dumps(body(stream=stream)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(payload), payload)
    )
    await asyncio.wait_for(gate.reached.wait(), 10)
    if stream:
        assert b"one " in await asyncio.wait_for(reader.readuntil(b"one "), 5)
    left = time.monotonic()
    writer.close()
    received = upstream.received[-1]
    await asyncio.wait_for(received.closed.wait(), 5)
    assert received.closed_at is not None
    return received.closed_at - left


@pytest.mark.parametrize("stream", [True, False])
async def test_client_when_gone_then_upstream_is_closed_within_a_tenth_of_a_second(
    gateway: System, upstream: Upstream, stream: bool
) -> None:
    # The best of three: a busy machine may hold up any one of them.
    took = [await until_closed(gateway, upstream, stream=stream) for _ in range(3)]
    print(f"closed after {', '.join(f'{1000 * seconds:.0f} ms' for seconds in took)}")
    assert min(took) < 0.1
    status, found, _ = await asyncio.to_thread(
        gateway.post, "/v1/memory/retrieve", {"user_id": "default_user", "query": "tell me"}
    )
    assert (status, found["episodes"]) == (200, [])


async def test_bridge_when_stopped_in_a_stream_then_the_client_is_told_once_the_grace_is_over(
    tmp_path: Path, upstream: Upstream
) -> None:
    system = System(tmp_path, {"OPENAI_BASE_URL": upstream.base_url, "MEMORYOS_BRIDGE__GRACE_SECONDS": "1"})
    await asyncio.to_thread(system.start)
    try:
        upstream.will(Reply(content_type="text/event-stream", body=[sse(delta("one "))[0], Gate()]))
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{system.url}/v1/chat/completions", json=body(stream=True)) as answer,
        ):
            await answer.content.readany()
            assert system.bridge is not None
            system.bridge.terminate()
            rest = await asyncio.wait_for(answer.content.read(), 5)
        assert b'"code":"server_unavailable"' in rest
        assert b"[DONE]" not in rest
        assert await asyncio.to_thread(system.bridge.wait, 5) == 0
        assert "Traceback" not in (tmp_path / "bridge.log").read_text()
    finally:
        system.bridge = None
        await asyncio.to_thread(system.__exit__)
