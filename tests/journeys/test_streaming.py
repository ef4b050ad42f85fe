"""Streams while the processes that carry them are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.system import System
from tests.upstream import Gate, Reply, Upstream, delta, sse


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


def body(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-test", "messages": [{"role": "user", "content": "tell me"}], **more}


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
