from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from memoryos import AsyncClient, errors
from memoryos.v1 import chat_service_pb2
from tests.clients.conftest import Script, failing

UNAVAILABLE = failing(grpc.StatusCode.UNAVAILABLE, "draining", "SERVER_UNAVAILABLE")


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address, api_key="key-1", user_id="ann") as made:
        yield made


async def test_calls_when_answered_then_values_are_plain(client: AsyncClient, script: Script) -> None:
    script.initial = (("memoryos-status", "degraded"),)
    added = await client.add("I take my coffee black.")
    assert added.degraded
    assert (await client.retrieve("coffee?")).episodes[0].content == "I take my coffee black."
    assert (await client.history("m1"))[0].version == 1
    assert (await client.models())[0].owned_by == "memoryos"
    assert (await client.health()).mode == "degraded_ready"
    assert (await client.chat("How?", model="m")).memory.remembered == "true"
    assert {seen["x-user-id"] for seen in script.metadata} == {"ann"}


async def test_retry_when_unavailable_then_the_same_event_is_sent_again(client: AsyncClient, script: Script) -> None:
    script.failures = [UNAVAILABLE, UNAVAILABLE]
    await client.add("I take my coffee black.")
    assert len(script.requests) == 3
    assert len({request.event_id for request in script.requests}) == 1


async def test_error_when_the_server_gives_a_reason_then_all_is_told(client: AsyncClient, script: Script) -> None:
    script.failures = [
        failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", "TOO_MANY_REQUESTS", retry=1.5, param="x")
    ]
    with pytest.raises(errors.TooManyRequests) as caught:
        await client.retrieve("coffee?")
    assert (caught.value.retry_after, caught.value.param) == (1.5, "x")
    assert caught.value.request_id == script.metadata[0]["x-request-id"]


async def test_deadline_when_it_passes_then_the_call_ends_with_it(client: AsyncClient, script: Script) -> None:
    script.failures = [lambda context: time.sleep(0.5)]
    with pytest.raises(errors.DeadlineExceeded):
        await client.retrieve("coffee?", timeout=0.2)


async def test_stream_when_it_completes_then_text_and_memory_are_known(client: AsyncClient) -> None:
    async with client.stream_chat("How?", model="m") as stream:
        assert [text async for text in stream] == ["Black", "."]
    assert stream.completed
    assert stream.memory is not None
    assert stream.memory.event_id == "e1"


async def test_stream_when_it_is_left_then_the_server_notices(client: AsyncClient, script: Script) -> None:
    script.hang = True
    async with client.stream_chat("How?", model="m") as stream:
        async for _ in stream:
            break
    assert await asyncio.to_thread(script.cancelled.wait, 2)


async def test_stream_when_its_task_is_cancelled_then_the_server_notices_and_the_task_ends(
    client: AsyncClient, script: Script
) -> None:
    script.hang = True

    async def read() -> None:
        async for _ in client.stream_chat("How?", model="m"):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(script.cancelled.wait, 2)


async def test_raw_stream_when_called_by_name_then_messages_come(client: AsyncClient) -> None:
    request = chat_service_pb2.StreamChatCompletionRequest()
    kinds = [message.WhichOneof("event") async for message in client.stream("StreamChatCompletion", request)]  # type: ignore[arg-type]
    assert kinds == ["start", "chunk", "chunk", "chunk", "chunk", "end"]
