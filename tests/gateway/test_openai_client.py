"""OpenAI's own client for Python, unchanged, against bridge and server and a provider that takes nothing but OpenAI's requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.gateway.conftest import Client, until
from tests.gateway.strict import check_strictly
from tests.system import System
from tests.upstream import Gate, Reply, Upstream, delta, error_reply, json_reply, sse, stream_reply

TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
async def ai(gateway: System) -> AsyncIterator[AsyncOpenAI]:
    headers = {"X-User-ID": "openai"}
    async with AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="callers-own", max_retries=0, default_headers=headers
    ) as made:
        yield made


def asks(content: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": content}]


async def test_chat_when_asked_then_the_answer_and_what_memory_did(
    ai: AsyncOpenAI, upstream: Upstream, client: Client
) -> None:
    upstream.will(json_reply("I will keep it in mind"))
    told = await ai.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=asks("I like tea best"), temperature=0.5, user="label"
    )
    await client.kept("openai", told.headers["x-memoryos-event-id"])
    for _ in range(100):  # a busy machine may keep a chat from its memory
        upstream.will(json_reply("Tea"))
        asked = await ai.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=asks("What do I like best to drink?")
        )
        if "x-memoryos-status" not in asked.headers:
            break
        upstream.received.pop()
        await asyncio.sleep(0.1)
    answer = asked.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Tea", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 21
    assert answer.model_extra is not None
    assert answer.model_extra["memoryos"]["event_id"] == asked.headers["x-memoryos-event-id"] != ""
    first, second = map(check_strictly, upstream.received)
    assert first["temperature"] == 0.5
    assert "I like tea best" in second["messages"][0]["content"]
    assert second["messages"][1:] == asks("What do I like best to drink?")


async def test_stream_when_read_then_every_chunk_and_the_usage(ai: AsyncOpenAI, upstream: Upstream) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    frames = sse({"choices": []}, delta("", role="assistant"), delta("你"), delta("好"), delta(None, "stop"), usage)
    upstream.will(Reply(body=[b": ping\n\n", *frames], content_type="text/event-stream"))
    stream = await ai.chat.completions.create(
        model="gpt-4o-mini", messages=asks("Greet me"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "你好"
    assert [c.usage.total_tokens for c in chunks if c.usage] == [3]
    assert stream.response.headers["x-memoryos-remembered"] == "pending"
    assert check_strictly(upstream.received[0])["stream_options"] == {"include_usage": True}


async def test_tools_when_called_in_a_stream_then_the_loop_ends_with_the_answer(
    ai: AsyncOpenAI, upstream: Upstream, client: Client
) -> None:
    user = {"X-User-ID": "openai-tools"}
    calls = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        *({"index": 0, "function": {"arguments": piece}} for piece in ('{"at', '": "Ba', 'sel"}')),
    ]
    frames = sse(*(delta(None, tool_calls=[call]) for call in calls), delta(None, "tool_calls"))
    upstream.will(Reply(body=frames, content_type="text/event-stream"), json_reply("Sunny"))
    messages = asks("How is the weather in Basel?")
    async with ai.chat.completions.stream(
        model="gpt-4o-mini", messages=messages, tools=[TOOL], tool_choice="required", extra_headers=user
    ) as stream:
        first = (await stream.get_final_completion()).choices[0].message
    assert first.tool_calls
    assert (first.tool_calls[0].id, first.tool_calls[0].function.arguments) == ("c1", '{"at": "Basel"}')
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Basel"}'}}
    said: Any = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "sun"}]
    answer = await ai.chat.completions.create(
        model="gpt-4o-mini", messages=[*messages, *said], tools=[TOOL], extra_headers=user
    )
    assert answer.choices[0].message.content == "Sunny"
    one, two = map(check_strictly, upstream.received)
    assert one["tools"] == two["tools"] == [TOOL]
    assert two["messages"] == [*messages, *said]
    await client.keeps("openai-tools", ("user", "How is the weather in Basel?"), ("assistant", "Sunny"))


class Weather(BaseModel):
    place: str
    degrees: float


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_structured_output_when_asked_for_then_parsed(
    ai: AsyncOpenAI, upstream: Upstream, streamed: bool
) -> None:
    text = '{"place": "Basel", "degrees": 21.0}'
    upstream.will(stream_reply(text[:9], text[9:]) if streamed else json_reply(text))
    question = asks("The weather, structured")
    if streamed:
        async with ai.chat.completions.stream(model="gpt-4o", messages=question, response_format=Weather) as stream:
            parsed = (await stream.get_final_completion()).choices[0].message.parsed
    else:
        answer = await ai.chat.completions.parse(model="gpt-4o", messages=question, response_format=Weather)
        parsed = answer.choices[0].message.parsed
    assert parsed == Weather(place="Basel", degrees=21.0)
    asked = check_strictly(upstream.received[0])["response_format"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)


async def test_call_when_cancelled_then_the_providers_connection_is_closed(
    ai: AsyncOpenAI, upstream: Upstream, client: Client
) -> None:
    user = {"X-User-ID": "openai-leaver"}
    gate = Gate()
    upstream.will(Reply(before=[gate]))
    call = asyncio.create_task(
        ai.chat.completions.create(model="gpt-4o", messages=asks("Never mind"), extra_headers=user)
    )
    await asyncio.wait_for(gate.reached.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(upstream.received[0].closed.wait(), 10)

    gate = Gate()
    upstream.will(Reply(body=[sse(delta("one"))[0], gate], content_type="text/event-stream"))
    stream = await ai.chat.completions.create(
        model="gpt-4o", messages=asks("Never mind"), stream=True, extra_headers=user
    )
    assert (await anext(stream)).choices[0].delta.content == "one"
    await stream.close()
    await asyncio.wait_for(upstream.received[1].closed.wait(), 10)
    await until(lambda: upstream.open == 0)
    await client.keeps("openai-leaver")


async def read_into(got: list[str | None], stream: openai.AsyncStream[ChatCompletionChunk]) -> None:
    async for chunk in stream:
        got.append(chunk.choices[0].delta.content)


async def test_errors_when_the_provider_refuses_or_breaks_off_then_the_clients_own(
    ai: AsyncOpenAI, upstream: Upstream
) -> None:
    refusals: list[tuple[int, type[openai.APIStatusError], int]] = [
        (400, openai.BadRequestError, 400),
        (401, openai.InternalServerError, 502),
        (404, openai.NotFoundError, 404),
        (422, openai.UnprocessableEntityError, 422),
        (429, openai.RateLimitError, 429),
    ]
    for status, kind, shown in refusals:
        upstream.will(error_reply(status, Retry_After="60"))
        with pytest.raises(kind) as caught:
            await ai.chat.completions.create(model="m", messages=asks("Go"), stream=status != 422)
        assert (caught.value.status_code, caught.value.code) == (shown, "upstream_failed" if shown == 502 else "c")
    upstream.will(
        Reply(body=[*sse(delta("one"), done=False), b'data: {"cho'], content_type="text/event-stream", end=False)
    )
    stream = await ai.chat.completions.create(model="m", messages=asks("Go"), stream=True)
    got: list[str | None] = []
    with pytest.raises(openai.APIError, match="broke off") as broken:
        await read_into(got, stream)
    assert got == ["one"]
    assert broken.value.code == "upstream_failed"


def test_client_when_it_blocks_then_chats_and_lists_models(gateway: System) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="k", default_headers={"X-User-ID": "sync"}) as ai:
        assert "memoryos/recall" in [model.id for model in ai.models.list()]
        ai.chat.completions.create(model="memoryos/recall", messages=asks("My sister lives in Porto"))
        with ai.chat.completions.create(
            model="memoryos/recall", messages=asks("Where does my sister live?"), stream=True
        ) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "Porto" in text
