from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import openai
import pytest

from memoryos.v1 import chat_service_pb2 as pb
from tests.bridge.chat_server import ANSWER, FRAMES, ChatServer, rich, run_chat_server
from tests.bridge.conftest import Bridge, run_bridge, until

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def chat() -> AsyncIterator[tuple[ChatServer, Bridge]]:
    async with run_chat_server() as (servicer, address), run_bridge(address) as bridge:
        yield servicer, bridge


async def post(bridge: Bridge, body: Any = None, **headers: str) -> httpx.Response:
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    return await bridge.client.post("/v1/chat/completions", json=BODY if body is None else body, headers=given)


async def test_json_when_answered_then_the_bytes_are_the_providers_and_facts_are_headers(
    chat: tuple[ChatServer, Bridge],
) -> None:
    answer = await post(chat[1])
    assert answer.content == ANSWER
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    facts = {k: v for k, v in answer.headers.items() if k.startswith("x-memoryos-")}
    assert facts == {
        "x-memoryos-memories": "2",
        "x-memoryos-source": "upstream",
        "x-memoryos-remembered": "true",
        "x-memoryos-event-id": "e1",
        "x-memoryos-session-id": "sitzung%20%C3%A4",
    }


async def test_request_when_it_has_unknown_parameters_then_the_server_gets_the_text_as_sent(
    chat: tuple[ChatServer, Bridge],
) -> None:
    text = (
        '{ "model":"m","messages":[{"role":"user","content":"ä"}], "seed": 123456789012345678901234567890, "x": 1.0 }'
    )
    await chat[1].client.post(
        "/v1/chat/completions",
        content=text.encode(),
        headers={
            "content-type": "application/json",
            "x-memoryos-memory": "Read",
            "x-memoryos-session-id": "s1",
            "idempotency-key": "k1",
            "x-user-id": "u",
            "authorization": "Bearer b",
        },
    )
    (request,) = chat[0].requests
    assert request.chat == pb.ChatRequest(
        body_json=text, memory=pb.MEMORY_MODE_READ, session_id="s1", idempotency_key="k1"
    )
    assert chat[0].metadata[0]["x-user-id"] == "u"
    assert chat[0].metadata[0]["authorization"] == "Bearer b"


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"stream": "yes"}, {}, "stream"),
        ({"stream": 1}, {}, "stream"),
        ([], {}, None),
        (BODY, {"x_memoryos_memory": "maybe"}, "X-MemoryOS-Memory"),
        (BODY, {"idempotency_key": "k" * 257}, "Idempotency-Key"),
        (BODY, {"x_memoryos_session_id": ""}, "X-MemoryOS-Session-ID"),
    ],
)
async def test_request_when_malformed_then_400(
    chat: tuple[ChatServer, Bridge], body: Any, headers: dict[str, str], param: str | None
) -> None:
    answer = await post(chat[1], body, **headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert chat[0].requests == []


async def test_sse_when_gated_then_bytes_come_as_they_are_sent_and_unchanged(chat: tuple[ChatServer, Bridge]) -> None:
    servicer, bridge = chat
    servicer.gate.clear()
    received = b""
    async with bridge.client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-memoryos-remembered"] == "pending"
        chunks = answer.aiter_raw()
        received += await anext(chunks)
        assert received == FRAMES[0]
        servicer.gate.set()
        async for chunk in chunks:
            received += chunk
    assert received == b"".join(FRAMES)
    assert servicer.requests[0].raw is True


async def test_sse_when_it_fails_before_the_first_byte_then_a_normal_error(chat: tuple[ChatServer, Bridge]) -> None:
    servicer, bridge = chat
    servicer.fail = rich(
        grpc.StatusCode.INVALID_ARGUMENT, "MODEL_NOT_FOUND", param="model", details="Model 'm' is not supported"
    )
    for after in (0, 1):
        servicer.fail_after = after
        answer = await post(bridge, BODY | {"stream": True})
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "type": "BadRequest",
            "message": "It broke",
            "details": "Model 'm' is not supported",
            "code": "model_not_found",
            "param": "model",
        }


@pytest.mark.parametrize(("first", "between"), [(FRAMES[0], b""), (b'data: {"cut', b"\n\n"), (b"data: x\n", b"\n")])
async def test_sse_when_it_fails_midway_then_one_error_frame_and_no_done(
    chat: tuple[ChatServer, Bridge], first: bytes, between: bytes
) -> None:
    servicer, bridge = chat
    servicer.frames = (first, FRAMES[2])
    servicer.fail = rich(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_FAILED")
    servicer.fail_after = 2
    answer = await post(bridge, BODY | {"stream": True})
    assert answer.status_code == 200
    assert answer.content.startswith(first + between + b'data: {"error":{')
    assert answer.content.endswith(b"}}\n\n")
    assert b"[DONE]" not in answer.content
    error = json.loads(answer.content[len(first + between) + 6 :])["error"]
    assert (error["type"], error["code"]) == ("ExternalServiceError", "upstream_failed")


@pytest.mark.parametrize("stream", [False, True])
async def test_client_when_it_leaves_then_the_call_ends_within_100_ms(
    chat: tuple[ChatServer, Bridge], stream: bool
) -> None:
    servicer, bridge = chat
    servicer.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    body = json.dumps(BODY | {"stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: servicer.running == 1)
    writer.close()
    await writer.wait_closed()
    assert await until(lambda: servicer.running == 0) < 0.5
    await until(lambda: bridge.lines())
    assert [line["status"] for line in bridge.lines()] == [499]


async def test_openai_client_when_it_uses_the_bridge_then_answers_streams_and_errors_are_its_own(
    chat: tuple[ChatServer, Bridge],
) -> None:
    servicer, bridge = chat
    servicer.frames = (FRAMES[0], FRAMES[2])
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="k", max_retries=0) as client:
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content == "Hi"
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["H"]
        assert [model.id async for model in client.models.list()] == ["memoryos/recall"]
        servicer.fail = rich(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_REJECTED", upstream_status="429", upstream_code="slow_down"
        )
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert caught.value.code == "slow_down"


async def test_retry_when_the_server_was_not_reached_then_only_repeatable_calls_are_tried_again(
    chat: tuple[ChatServer, Bridge],
) -> None:
    servicer, bridge = chat
    servicer.bare = 2
    assert (await bridge.client.get("/v1/models")).status_code == 200
    assert len(servicer.requests) == 3
    servicer.requests.clear()
    servicer.bare = 1
    assert (await post(bridge)).status_code == 503
    assert len(servicer.requests) == 1
    servicer.requests.clear()
    servicer.bare = 0
    servicer.fail = rich(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    answer = await bridge.client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert len(servicer.requests) == 1
