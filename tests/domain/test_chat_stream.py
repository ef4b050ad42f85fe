"""Answers as they come: what passes, what is held, and what is remembered of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from memoryos_server.domain.chat.model import (
    ChatBytes,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    MemoryMode,
)
from memoryos_server.domain.chat.sse import Piece
from memoryos_server.domain.core.faults import (
    Upstream,
    UpstreamRejected,
)
from tests.domain.chat_support import ANYONE, Chat, body, data, flow, open_chat
from tests.upstream import Die, Gate, Reply, delta, error_reply, sse, stream_reply


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    async with open_chat(recall_deadline_seconds=2.0, remember_deadline_seconds=2.0) as opened:
        yield opened


async def _drain(stream: AsyncIterator[Any], seen: list[Any]) -> None:
    async for event in stream:
        seen.append(event)


async def test_stream_when_gated_then_first_token_is_out_before_the_second_is_sent(chat: Chat) -> None:
    gate = Gate()
    first, *rest = sse(delta("one"), delta("two"), delta(None, "stop"))
    chat.upstream.will(Reply(body=[first, gate, *rest], content_type="text/event-stream"))
    async with aclosing(chat.service.stream(ANYONE, ChatRequest(body("x", stream=True)), raw=True)) as events:
        started = await anext(events)
        assert isinstance(started, ChatStarted)
        assert started.memory.remembered == "pending"
        assert await asyncio.wait_for(anext(events), 5) == ChatBytes(first)
        gate.open()
        others = [event async for event in events]
    assert data(others) == b"".join(rest)
    assert chat.memory.said() == [("user", "x"), ("assistant", "onetwo")]
    assert others[-1].memory.remembered == "true"
    assert others[-1].memory.event_id == started.memory.event_id


HOSTILE = (
    b"\xef\xbb\xbf: ping\r\n\r\n"
    + "".join(f"data: {json.dumps(e, ensure_ascii=False)}\r\n\r\n" for e in (delta("你好 "), delta("🙂"))).encode()
    + b": comment\n\nevent: x\ndata: not json\n\n"
    + b"".join(sse(delta(None, "stop"), {"choices": [], "usage": {"total_tokens": 1}}))
)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
async def test_stream_when_hostile_and_fragmented_then_bytes_are_equal_and_text_is_read(chat: Chat, size: int) -> None:
    pieces = [HOSTILE[i : i + size] for i in range(0, len(HOSTILE), size)]
    chat.upstream.will(Reply(body=pieces, content_type="text/event-stream"))
    events = await flow(chat, body("x", stream=True))
    assert data(events) == HOSTILE
    assert chat.memory.said() == [("user", "x"), ("assistant", "你好 🙂")]


async def test_stream_when_typed_then_pieces(chat: Chat) -> None:
    chat.upstream.will(stream_reply("a", "b"))
    started, *pieces, finished = await flow(chat, body("x"), raw=False)
    assert isinstance(started, ChatStarted)
    assert isinstance(finished, ChatFinished)
    assert [(p.content, p.finish_reason) for p in pieces if isinstance(p, Piece)] == [
        ("a", ""),
        ("b", ""),
        ("", "stop"),
    ]
    assert json.loads(pieces[0].chunk_json) == delta("a")
    assert chat.upstream.received[0].json["stream"] is True


async def test_stream_when_acceptance_is_under_way_then_done_is_held(chat: Chat) -> None:
    chat.memory.delay = 0.3
    chat.upstream.will(stream_reply("a"))
    loop, seen = asyncio.get_running_loop(), []
    request = ChatRequest(body("x", stream=True), memory=MemoryMode.WRITE)
    async with aclosing(chat.service.stream(ANYONE, request, raw=True)) as events:
        async for event in events:
            if isinstance(event, ChatBytes):
                seen.append((loop.time(), b"[DONE]" in event.data, bool(chat.memory.said())))
    assert [done for _, done, _ in seen][-1]
    assert not seen[0][1]
    assert seen[-1][0] - seen[0][0] >= 0.25
    assert seen[-1][2]


async def test_stream_when_done_is_missing_then_it_is_not_invented(chat: Chat) -> None:
    frames = sse(delta("a"), delta(None, "stop"), done=False)
    chat.upstream.will(Reply(body=frames, content_type="text/event-stream"))
    events = await flow(chat, body("x", stream=True))
    assert data(events) == b"".join(frames)
    assert isinstance(events[-1], ChatFinished)
    assert chat.memory.said() == [("user", "x"), ("assistant", "a")]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=[*sse(delta("a"), done=False), Die()], content_type="text/event-stream"),
        Reply(body=sse(delta("a"), done=False), content_type="text/event-stream"),
        Reply(body=sse(delta("a"), done=False), content_type="text/event-stream", chunked=False),
        Reply(
            body=[*sse(delta("a"), done=False), b'data: {"choi'],
            content_type="text/event-stream",
            end=False,
            chunked=False,
        ),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
async def test_stream_when_cut_midway_then_fault_after_the_bytes_and_nothing_remembered(
    chat: Chat, reply: Reply, raw: bool
) -> None:
    chat.upstream.will(reply)
    seen: list[Any] = []
    stream = chat.service.stream(ANYONE, ChatRequest(body("x", stream=True)), raw=raw)
    seen.append(await anext(stream))
    with pytest.raises(Upstream):
        await _drain(stream, seen)
    assert b"[DONE]" not in data(seen)
    assert len(seen) >= 2
    assert chat.memory.said() == []


async def test_stream_when_upstream_sends_error_event_then_passed_on_once_and_not_remembered(chat: Chat) -> None:
    frames = sse(delta("a"), {"error": {"message": "overloaded"}}, done=False)
    reply = Reply(body=frames, content_type="text/event-stream")
    chat.upstream.will(reply, reply)
    events = await flow(chat, body("x", stream=True))
    assert data(events) == b"".join(frames)
    assert events[-1].memory.remembered == "false"
    with pytest.raises(Upstream, match="overloaded"):
        await flow(chat, body("x"), raw=False)
    assert chat.memory.said() == []


async def test_stream_when_error_comes_first_then_no_event_at_all(chat: Chat) -> None:
    chat.upstream.will(error_reply(422))
    stream = chat.service.stream(ANYONE, ChatRequest(body("x", stream=True)), raw=True)
    with pytest.raises(UpstreamRejected):
        await anext(stream)


async def test_stream_when_closed_by_the_reader_then_upstream_is_closed_and_nothing_remembered(chat: Chat) -> None:
    gate = Gate()
    chat.upstream.will(Reply(body=[*sse(delta("a"), done=False), gate], content_type="text/event-stream"))
    loop = asyncio.get_running_loop()
    async with aclosing(chat.service.stream(ANYONE, ChatRequest(body("x", stream=True)), raw=True)) as events:
        await anext(events)
        await anext(events)
        left = loop.time()
    (request,) = chat.upstream.received
    await asyncio.wait_for(request.closed.wait(), 1)
    assert request.closed_at is not None
    assert request.closed_at - left < 0.5
    assert chat.memory.said() == []


async def test_stream_when_silent_after_finish_then_ends_cleanly(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memoryos_server.domain.chat.passing.LINGER_AFTER_FINISH_SECONDS", 0.1)
    gate = Gate()
    frames = sse(delta("a"), delta(None, "stop"), done=False)
    chat.upstream.will(Reply(body=[*frames, gate], content_type="text/event-stream"))
    events = await asyncio.wait_for(flow(chat, body("x", stream=True)), 3)
    assert data(events) == b"".join(frames)
    assert events[-1].memory.remembered == "true"


async def test_stream_when_tool_calls_then_bytes_kept_and_not_remembered(chat: Chat) -> None:
    calls = [{"index": 0, "function": {"arguments": '{"a":'}}]
    frames = sse(delta(None, tool_calls=calls), delta(None, "tool_calls"))
    chat.upstream.will(Reply(body=frames, content_type="text/event-stream"))
    events = await flow(chat, body("x", stream=True))
    assert data(events) == b"".join(frames)
    assert events[-1].memory.remembered == "false"
    assert chat.memory.said() == []
