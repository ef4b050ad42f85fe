"""Answers of Anthropic's own interface in OpenAI's form, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from memoryos_server.domain.core.faults import DeadlineExceeded, Upstream, UpstreamRejected
from memoryos_server.domain.ports import Asked, Served
from memoryos_server.tools.llm.gateway import Gateway
from tests.anthropic import (
    BODY,
    HI,
    block_events,
    event,
    message_events,
    message_reply,
    opened,
    said,
    stream_reply,
    text,
)
from tests.upstream import Die, Gate, Reply, Sleep, error_reply
from tests.upstream import Upstream as Server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(None) as running:
        yield running


async def test_complete_when_answered_then_openais_form(server: Server) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"at": "R\u00f6m"}}
    server.will(message_reply(thought, text("a"), text("b"), use, stop="tool_use", cache_read_input_tokens=10))
    async with opened(server) as llm:
        value = json.loads((await llm.complete(Asked("claude-x", BODY))).body)
    assert abs(value.pop("created") - time.time()) < 60
    assert value == {
        "id": "msg_1",
        "object": "chat.completion",
        "model": "claude-x",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": None,
                    "reasoning_content": "hm",
                    "thinking_blocks": [thought],
                    "tool_calls": [
                        {
                            "id": "t1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"at": "R\u00f6m"}'},
                        }
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 13,
            "completion_tokens": 5,
            "total_tokens": 18,
            "prompt_tokens_details": {"cached_tokens": 10},
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
        },
    }


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
        ("new", "stop"),
    ],
)
async def test_complete_when_it_stops_then_the_reason_is_openais(server: Server, stop: str, finish: str) -> None:
    server.will(message_reply(text("x"), stop=stop))
    async with opened(server) as llm:
        value = json.loads((await llm.complete(Asked("claude-x", BODY))).body)
    assert value["choices"][0]["finish_reason"] == finish


async def chunks_of(llm: Gateway, body: str = BODY) -> bytes:
    seen: list[Served] = []
    async with aclosing(llm.stream(Asked("claude-x", body), seen.append)) as pieces:
        whole = b"".join([piece async for piece in pieces])
    assert [one.provider for one in seen] == ["anthropic"]
    return whole


def read(whole: bytes) -> list[Any]:
    frames = whole.decode().split("\n\n")
    assert frames[-1] == ""
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [frame[6:] if frame[6:] == "[DONE]" else json.loads(frame[6:]) for frame in frames[:-1]]


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_stream_when_answered_then_openais_chunks_whatever_the_pieces(server: Server, size: int) -> None:
    blocks = [
        block_events(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "h"},
            {"type": "thinking_delta", "thinking": "m"},
            {"type": "signature_delta", "signature": "s"},
        ),
        block_events(
            1, text(""), {"type": "text_delta", "text": "R\u00f6"}, {"type": "text_delta", "text": "m \U0001f600"}
        ),
        block_events(
            2,
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"at":'},
            {"type": "input_json_delta", "partial_json": '"x"}'},
        ),
        block_events(3, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        [event("something_new", x=1)],
    ]
    raw = b"".join(message_events(*blocks, stop="tool_use", cache_read_input_tokens=4))
    server.will(stream_reply(*[raw[at : at + size] for at in range(0, len(raw), size)]))
    async with opened(server) as llm:
        *chunks, usage, done = read(await chunks_of(llm))
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 7
    assert usage["usage"]["completion_tokens"] == 9
    assert {(one["id"], one["object"], one["model"], one["usage"]) for one in chunks} == {
        ("msg_1", "chat.completion.chunk", "claude-x", None)
    }
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
        {"content": "R\u00f6"},
        {"content": "m \U0001f600"},
        {
            "tool_calls": [
                {"index": 0, "id": "t1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]},
        {},
    ]
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [None] * 10 + ["tool_calls"]


async def test_stream_when_usage_is_not_asked_for_then_it_comes_with_the_finish_reason_for_whoever_counts(
    server: Server,
) -> None:
    server.will(stream_reply(*message_events(said("a"))))
    async with opened(server) as llm:
        frames = read(await chunks_of(llm, json.dumps({"model": "claude-x", "messages": [HI], "stream": True})))
    *others, last, done = frames
    assert not any("usage" in frame for frame in others)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 9)
    assert done == "[DONE]"
    assert frames[-1] == "[DONE]"


async def test_stream_when_an_error_comes_then_it_is_told_and_nothing_follows(server: Server) -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    server.will(stream_reply(*message_events(said("a"))[:4], event("error", error=error), event("message_stop")))
    async with opened(server) as llm:
        *_, last = read(await chunks_of(llm))
    assert last["error"] == {"message": "Overloaded", "type": "overloaded_error", "param": None, "code": None}


async def test_stream_when_a_call_has_no_arguments_then_they_are_an_empty_object(server: Server) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "now", "input": {}}
    empty = {"type": "input_json_delta", "partial_json": ""}
    server.will(stream_reply(*message_events(block_events(0, use, empty), stop="tool_use")))
    async with opened(server) as llm:
        frames = read(await chunks_of(llm))[:-2]
    calls = [call for one in frames for call in one["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"


async def test_stream_when_it_begins_with_an_error_then_it_is_a_failure_and_not_an_answer(server: Server) -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    server.will(stream_reply(error), stream_reply(event("ping") + error), stream_reply(*message_events(said("a"))))
    async with opened(server) as llm:
        for _ in range(2):
            with pytest.raises(Upstream, match="Overloaded"):
                await chunks_of(llm)
        assert read(await chunks_of(llm))[-1] == "[DONE]"


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: []\n\n", b'data: {"type": "message_start", "message": 5}\n\n'])
async def test_stream_when_an_event_cannot_be_read_then_upstream(server: Server, bad: bytes) -> None:
    server.will(stream_reply(bad))
    async with opened(server) as llm:
        with pytest.raises(Upstream, match="cannot be read"):
            await chunks_of(llm)


async def test_stream_when_cut_then_no_end_is_invented(server: Server) -> None:
    events = message_events(said("a"))
    server.will(stream_reply(*events[:4]), stream_reply(*events[:4], Sleep(0.05), Die()))
    async with opened(server) as llm:
        assert "[DONE]" not in read(await chunks_of(llm))
        with pytest.raises(Upstream, match="broke off"):
            await chunks_of(llm)


async def test_stream_when_only_pings_come_then_idle_timeout(server: Server) -> None:
    pings = [step for _ in range(8) for step in (Sleep(0.1), event("ping"))]
    server.will(stream_reply(*message_events(said("a"))[:2], *pings))
    async with opened(server, idle_timeout_seconds=0.4) as llm:
        with pytest.raises(DeadlineExceeded):
            await chunks_of(llm)


async def test_stream_when_cancelled_then_the_connection_is_closed(server: Server) -> None:
    gate = Gate()
    server.will(stream_reply(*message_events(said("a"))[:4], gate))
    async with opened(server) as llm:
        task = asyncio.create_task(chunks_of(llm))
        await asyncio.wait_for(gate.reached.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.received[0].closed.wait(), 1)


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"type": "error"}', b'{"type": "message", "content": [5], "usage": 5}']
)
async def test_complete_when_it_is_no_message_then_upstream(server: Server, body: bytes) -> None:
    server.will(Reply(body=[body]))
    async with opened(server) as llm:
        with pytest.raises(Upstream, match="no message"):
            await llm.complete(Asked("claude-x", BODY))


async def test_call_when_refused_then_the_provider_s_own_words(server: Server) -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: too large"}}
    server.will(error_reply(400, error), error_reply(529))
    async with opened(server) as llm:
        with pytest.raises(UpstreamRejected, match="max_tokens: too large") as caught:
            await llm.complete(Asked("claude-x", BODY))
        assert caught.value.metadata["upstream_type"] == "invalid_request_error"
        with pytest.raises(Upstream, match="529"):
            await llm.complete(Asked("claude-x", BODY))


async def test_models_when_listed_then_openais_form() -> None:
    listed = [
        {"type": "model", "id": "claude-x", "display_name": "X", "created_at": "2025-01-01T00:00:00Z"},
        {"type": "model", "id": "y"},
    ]
    async with Server(listed) as server, opened(server) as llm:
        assert await llm.models() == [
            {"id": "claude-x", "object": "model", "created": 1735689600, "owned_by": "anthropic"},
            {"id": "y", "object": "model", "created": 0, "owned_by": "anthropic"},
        ]
