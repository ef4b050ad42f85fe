from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from memoryos.settings import MemorySettings
from memoryos_server.domain.chat.model import ChatRequest, MemoryMode
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.faults import Upstream, UpstreamRejected
from memoryos_server.domain.core.text import estimate_tokens
from memoryos_server.domain.core.tokens import OTHER, ModelNames, Tokens, reported, rough_sum, rough_tokens
from memoryos_server.rpc.metrics import Metrics
from tests.domain.chat_support import ANYONE, Chat, ListMemory, ask, body, data, flow, open_chat
from tests.providers import gateway
from tests.upstream import Reply, completion, delta, error_reply, json_reply, sse
from tests.upstream import Upstream as Provider

USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 12,
    "total_tokens": 52,
    "prompt_tokens_details": {"cached_tokens": 32, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    async with open_chat(recall_deadline_seconds=2.0, remember_deadline_seconds=2.0) as opened:
        yield opened


def streamed(*events: Any, done: bool = True) -> Reply:
    return Reply(body=sse(*events, done=done), content_type="text/event-stream")


def of_usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Tokens(40, 12, 32, 5)),
        ({"prompt_tokens": 3.0, "completion_tokens": 0}, Tokens(3, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None}, Tokens(3, 4)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": "1"}}, Tokens(3, 4)),
        ({"prompt_tokens": 3}, None),
        ({"prompt_tokens": -1, "completion_tokens": 4}, None),
        ({"prompt_tokens": True, "completion_tokens": 4}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": 4}, None),
        ({"prompt_tokens": 1e300, "completion_tokens": 4}, None),
        (None, None),
        ([], None),
    ],
)
def test_reported_when_read_then_only_what_is_a_count_counts(usage: object, expected: Tokens | None) -> None:
    assert reported(usage) == expected


def test_rough_tokens_when_a_text_is_long_then_it_is_told_from_parts_of_it() -> None:
    assert rough_tokens("蜜蜂" * 100) == estimate_tokens("蜜蜂" * 100)
    assert rough_tokens("蜜蜂" * 1_000_000) == pytest.approx(estimate_tokens("蜜蜂" * 1_000_000), rel=0.01)
    assert rough_tokens("bees " * 1_000_000) == estimate_tokens("bees " * 1_000_000)
    mixed = "bees " * 100_000 + "蜜蜂" * 250_000
    assert rough_tokens(mixed) == pytest.approx(estimate_tokens(mixed), rel=0.05)


def test_rough_sum_when_there_are_very_many_texts_then_it_takes_no_longer_than_for_one_long_text() -> None:
    assert rough_sum([]) == 0
    assert rough_sum(["bees", "蜜蜂"]) == estimate_tokens("bees") + estimate_tokens("蜜蜂")
    many = ["é bees and 蜜蜂" * 10] * 50_000
    began = time.monotonic()
    rough = rough_sum(many)
    seconds = time.monotonic() - began
    began = time.monotonic()
    assert rough == pytest.approx(sum(map(estimate_tokens, many)), rel=0.05)
    assert seconds < 0.2 * (time.monotonic() - began)


def test_model_names_when_there_are_many_or_odd_ones_then_they_count_as_other() -> None:
    names = ModelNames(2)
    assert [names.of(name) for name in ("a", "b", "c", "a", "b")] == ["a", "b", OTHER, "a", "b"]
    fresh = ModelNames()
    assert [fresh.of(name) for name in ("x" * 101, "a\nb", "\ud800")] == [OTHER] * 3


async def test_complete_when_the_provider_reports_then_that_is_counted(chat: Chat) -> None:
    chat.memory.say("My sister Ingrid keeps bees.")
    reply = completion("Ingrid").replace(
        b'{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}', json.dumps(USAGE).encode()
    )
    chat.upstream.will(Reply(body=[reply]))
    answer = await ask(chat, body("Who keeps bees?"))
    assert answer.memory.tokens > 0
    assert chat.spent == [(ANYONE, "fake-1", Tokens(40, 12, 32, 5, answer.memory.tokens))]


async def test_complete_when_the_provider_reports_nothing_then_text_is_estimated(chat: Chat) -> None:
    reply = b'{"choices":[{"index":0,"message":{"content":"Bees","reasoning_content":"hm"}},{"index":1,"message":{}}]}'
    chat.upstream.will(Reply(body=[reply]))
    await ask(chat, body("Who keeps bees?"), memory=MemoryMode.OFF)
    expected = Tokens(estimate_tokens("Who keeps bees?"), estimate_tokens("Beeshm"), estimated=True)
    assert [tokens for _, _, tokens in chat.spent] == [expected]


async def test_complete_when_it_fails_then_nothing_is_counted(chat: Chat) -> None:
    chat.upstream.will(error_reply(422), Reply(body=[b'{"error":{"message":"in a 200"}}']))
    with pytest.raises(UpstreamRejected):
        await ask(chat, body("x"))
    await ask(chat, body("x"))
    assert chat.spent == []


@pytest.mark.parametrize("raw", [True, False])
async def test_stream_when_usage_comes_then_the_last_counts_and_no_byte_changes(chat: Chat, raw: bool) -> None:
    early = {"prompt_tokens": 40, "completion_tokens": 1}
    frames = [delta("Hel") | {"usage": early}, delta("lo", "stop") | {"usage": None}, of_usage(USAGE)]
    chat.upstream.will(streamed(*frames))
    events = await flow(chat, body("x", stream=True, stream_options={"include_usage": True}), raw=raw)
    assert [tokens for _, _, tokens in chat.spent] == [Tokens(40, 12, 32, 5)]
    if raw:
        assert data(events) == b"".join(sse(*frames))


async def test_stream_when_usage_is_not_asked_for_then_it_is_estimated_and_not_asked_for(chat: Chat) -> None:
    calls = [{"index": 0, "function": {"name": "f", "arguments": '{"a": 1}'}}]
    frames = [delta(None, reasoning_content="think "), delta("Hello"), delta(None, "tool_calls", tool_calls=calls)]
    chat.upstream.will(streamed(*frames))
    await flow(chat, body("Is it raining?", stream=True), memory=MemoryMode.OFF)
    assert chat.upstream.received[0].body.decode() == body("Is it raining?", stream=True)
    output = estimate_tokens('Hellothink f{"a": 1}')
    expected = Tokens(estimate_tokens("Is it raining?"), output, estimated=True)
    assert [tokens for _, _, tokens in chat.spent] == [expected]


async def test_stream_when_the_reader_leaves_or_the_provider_breaks_off_then_what_was_written_counts(
    chat: Chat,
) -> None:
    chat.upstream.will(streamed(delta("Hello"), delta(" there"), done=False), streamed(delta("Hello"), done=False))
    async with aclosing(chat.service.stream(ANYONE, ChatRequest(body("x", stream=True)), raw=True)) as events:
        await anext(events)
        await anext(events)
    with pytest.raises(Upstream):
        await flow(chat, body("x", stream=True))
    assert len(chat.spent) == 2
    for _, _, tokens in chat.spent:
        assert tokens.estimated
        assert tokens.output >= estimate_tokens("Hello")


async def test_stream_when_it_fails_at_once_then_nothing_is_counted(chat: Chat) -> None:
    chat.upstream.will(error_reply(422), streamed({"error": {"message": "no"}}))
    with pytest.raises(UpstreamRejected):
        await flow(chat, body("x", stream=True))
    await flow(chat, body("x", stream=True))
    assert chat.spent == []


async def test_builtin_when_it_answers_then_its_tokens_are_an_estimate(chat: Chat) -> None:
    chat.memory.say("My sister Ingrid keeps bees.")
    answer = await ask(chat, body("Who keeps bees?", model="memoryos/recall"))
    usage = json.loads(answer.body)["usage"]
    ((_, model, tokens),) = chat.spent
    assert model == "memoryos/recall"
    assert tokens == Tokens(usage["prompt_tokens"], usage["completion_tokens"], estimated=True)


async def test_metrics_when_tokens_are_spent_then_estimates_are_told_apart() -> None:
    metrics = Metrics()
    spent = Tokens(40, 12, 32, 5, 7)
    metrics.spent("m", spent)
    metrics.spent("m", replace(spent, estimated=True))
    text = await metrics.text()
    for direction, number in (("input", 40), ("output", 12), ("cached", 32), ("reasoning", 5)):
        for estimated in ("true", "false"):
            labels = f'direction="{direction}",estimated="{estimated}",model="m"'
            assert f"memoryos_llm_tokens_total{{{labels}}} {number}.0" in text
    assert 'memoryos_llm_tokens_total{direction="injected",estimated="true",model="m"} 14.0' in text


async def test_chat_when_counting_fails_then_it_is_answered_all_the_same() -> None:
    def broken(*_: object) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "no")

    async with Provider() as upstream, gateway(upstream.base_url) as llm:
        service = ChatService(ListMemory(), llm, MemorySettings(), spent=broken)
        upstream.will(json_reply("Hi"), streamed(delta("Hi"), delta(None, "stop")))
        assert (await service.complete(ANYONE, ChatRequest(body("x")))).content == "Hi"
        events = service.stream(ANYONE, ChatRequest(body("x")), raw=True)
        assert data([event async for event in events]).endswith(b"data: [DONE]\n\n")


async def test_complete_when_memory_is_off_then_tokens_are_counted_all_the_same(chat: Chat) -> None:
    chat.upstream.will(json_reply("Hi"))
    await ask(chat, body("x"), memory=MemoryMode.OFF)
    assert [tokens for _, _, tokens in chat.spent] == [Tokens(9, 12)]
