from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import chat_service_pb2_grpc, system_service_pb2, system_service_pb2_grpc
from tests.bridge.conftest import Bridge, run_bridge, until

ANSWER = b'{"id":"c1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],  "odd": 1.0}'
FRAMES = (b'data: {"choices":[{"index":0,"delta":{"content":"H"}}]}\n\n', b": ping\r\n\r\n", b"data: [DONE]\n\n")
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def rich(code: grpc.StatusCode, reason: str, **metadata: str) -> Any:
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="memoryos", metadata=metadata))
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message="It broke", details=[detail]))


@dataclass
class ChatServer(chat_service_pb2_grpc.ChatServiceServicer):
    """A gRPC server that says what tests tell it to say: the far side of the bridge, as the wire shows it."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fail: Any = None
    fail_after: int = 0
    bare: int = 0
    running: int = 0
    frames: tuple[bytes, ...] = FRAMES

    async def _enter(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.bare:
            self.bare -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        if self.fail is not None and not self.fail_after:
            await context.abort_with_status(self.fail)

    async def CreateChatCompletion(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._enter(request, context)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        memory = pb.ChatMemory(
            injected=[pb.InjectedMemory(id="a"), pb.InjectedMemory(id="b")],
            source="upstream",
            remembered="true",
            event_id="e1",
            session_id="sitzung ä",
        )
        return pb.CreateChatCompletionResponse(body=ANSWER, content_type="application/json; charset=utf-8", memory=memory)

    async def StreamChatCompletion(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        await self._enter(request, context)
        self.running += 1
        try:
            yield pb.StreamChatCompletionResponse(start=pb.ChatMemory(source="upstream", remembered="pending"))
            for number, frame in enumerate(self.frames):
                if self.fail is not None and number == self.fail_after - 1:
                    await context.abort_with_status(self.fail)
                yield pb.StreamChatCompletionResponse(raw=frame)
                if number == 0:
                    await self.gate.wait()
            yield pb.StreamChatCompletionResponse(end=pb.ChatEnd())
        finally:
            self.running -= 1

    async def ListModels(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        await self._enter(request, context)
        return pb.ListModelsResponse(object="list", data=[pb.Model(id="memoryos/recall", object="model", owned_by="x")])


class SystemServer(system_service_pb2_grpc.SystemServiceServicer):
    def GetServerInfo(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        return system_service_pb2.GetServerInfoResponse(auth_enabled=False)


@asynccontextmanager
async def chat_system() -> AsyncIterator[tuple[ChatServer, Bridge]]:
    server = grpc.aio.server()
    servicer = ChatServer()
    servicer.gate.set()
    chat_service_pb2_grpc.add_ChatServiceServicer_to_server(servicer, server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(SystemServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with run_bridge(f"127.0.0.1:{port}") as bridge:
            yield servicer, bridge
    finally:
        servicer.gate.set()
        await server.stop(1)


@pytest.fixture
async def chat() -> AsyncIterator[tuple[ChatServer, Bridge]]:
    async with chat_system() as made:
        yield made


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
    text = '{ "model":"m","messages":[{"role":"user","content":"ä"}], "seed": 123456789012345678901234567890, "x": 1.0 }'
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
    servicer.fail = rich(grpc.StatusCode.INVALID_ARGUMENT, "MODEL_NOT_FOUND", param="model", details="Model 'm' is not supported")
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
    assert await until(lambda: servicer.running == 0) < 0.1
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
        stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["H"]
        assert [model.id async for model in client.models.list()] == ["memoryos/recall"]
        servicer.fail = rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_REJECTED", upstream_status="429", upstream_code="slow_down")
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
