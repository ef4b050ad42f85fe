"""ChatService over a real channel, through the real interceptors, to a provider over TCP."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from memoryos import schema
from memoryos.settings import ServerSettings
from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import chat_service_pb2_grpc, types_pb2
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.health import Health
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.audit import Audit, AuditWriter
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.chat_servicer import ChatServicer
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.interceptors import standard
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.server import RpcServer
from tests.domain.chat_support import Chat, open_chat
from tests.scratch.serve import Backend, MemoryAudit, MemoryKeys
from tests.upstream import Gate, Reply, completion, delta, error_reply, json_reply, sse, stream_reply


@dataclass
class Served:
    stub: Any
    chat: Chat


@asynccontextmanager
async def serve() -> AsyncIterator[Served]:
    methods = schema.load([pb.DESCRIPTOR])
    logger = rpc_logging.configure("info", "json", io.BytesIO())
    metrics, backend = Metrics(), Backend()
    board = HealthBoard(dict.fromkeys(m.service for m in methods))
    settings = ServerSettings(listen="127.0.0.1:0", metrics_listen="", grace_seconds=2.0)
    async with (
        open_chat(recall_deadline_seconds=2.0, remember_deadline_seconds=2.0) as chat,
        Health(
            redis=backend.probe,
            vectors=backend.probe,
            board=board,
            metrics=metrics,
            logger=logger,
            ready_when_noop=False,
        ) as health,
        AuditWriter(MemoryAudit(), metrics=metrics, logger=logger) as writer,
    ):
        auth = Auth(enabled=False, admin_key="", keys=MemoryKeys(), bridge_secret="")
        around = standard(methods, metrics=metrics, logger=logger, serving=health, auth=auth, audit=Audit(writer))
        async with RpcServer(
            settings,
            auth_enabled=False,
            insecure=False,
            methods=methods,
            servicers={"memoryos.v1.ChatService": ChatServicer(chat.service)},
            around=around,
            serving=health,
            board=board,
            logger=logger,
        ) as server:
            health.serve()
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield Served(chat_service_pb2_grpc.ChatServiceStub(channel), chat)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


def request(text: str = "x", **more: Any) -> pb.ChatRequest:
    return pb.ChatRequest(model="fake-1", messages=[pb.ChatMessage(role="user", content=text)], **more)


def raw_body(text: str, **more: Any) -> str:
    return json.dumps({"model": "fake-1", "messages": [{"role": "user", "content": text}]} | more)


async def test_create_when_typed_then_answer_with_memory(served: Served) -> None:
    memory_id = served.chat.memory.say("tea is good", user="ada")
    served.chat.upstream.will(json_reply("yes"))
    chat = request(
        "tea?", user_id="ada", temperature=0.5, extra_json='{"seed":1.0}', session_id="s", idempotency_key="k"
    )
    answer = await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=chat))
    assert (answer.content, answer.finish_reason, answer.content_type) == ("yes", "stop", "application/json")
    assert json.loads(answer.body)["memoryos"]["session_id"] == "s"
    assert [(i.id, i.tier) for i in answer.memory.injected] == [(memory_id, types_pb2.TIER_EPISODE)]
    assert (answer.memory.remembered, answer.memory.source) == ("true", "upstream")
    sent = served.chat.upstream.received[0]
    assert b'"temperature":0.5' in sent.body
    assert b'"seed":1.0' in sent.body
    assert [m["role"] for m in sent.json["messages"]] == ["system", "user"]


async def test_create_when_memory_is_off_then_bytes_are_equal_both_ways(served: Served) -> None:
    served.chat.upstream.will(json_reply("yes"))
    text = raw_body("é", n=1)
    answer = await served.stub.CreateChatCompletion(
        pb.CreateChatCompletionRequest(chat=pb.ChatRequest(body_json=text, memory=pb.MEMORY_MODE_OFF))
    )
    assert answer.body == completion("yes")
    assert served.chat.upstream.received[0].body == text.encode()


async def test_create_when_caller_sends_a_bearer_then_it_is_not_forwarded(served: Served) -> None:
    await served.stub.CreateChatCompletion(
        pb.CreateChatCompletionRequest(chat=request()), metadata=[("authorization", "Bearer callers-own")]
    )
    sent = served.chat.upstream.received[0]
    assert sent.headers["authorization"] == "Bearer provider-key"
    assert "callers-own" not in str(sent.headers)


async def test_create_when_memory_fails_then_answer_is_degraded(served: Served) -> None:
    served.chat.memory.failure = BackendDown("down")
    call = served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=request()))
    answer = await call
    assert answer.memory.remembered == "false"
    assert dict(await call.initial_metadata())["memoryos-status"] == "degraded"


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        (pb.ChatRequest(body_json="{", model=""), None),
        (pb.ChatRequest(body_json="{}", model="m"), "body_json"),
        (pb.ChatRequest(model="fake-1"), "messages"),
        (request(max_tokens=0), "max_tokens"),
        (request(temperature=3), "temperature"),
        (request(extra_json="[]"), "extra_json"),
        (request(session_id=""), "session_id"),
        (request(idempotency_key="x" * 257), "idempotency_key"),
    ],
)
async def test_create_when_wrong_then_invalid_argument_names_the_field(
    served: Served, chat: pb.ChatRequest, param: str | None
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=chat))
    info = info_of(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.metadata.get("param") == param
    assert served.chat.upstream.received == []


async def test_create_when_model_is_unknown_then_documented_error(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CreateChatCompletion(
            pb.CreateChatCompletionRequest(chat=pb.ChatRequest(body_json=raw_body("x", model="nope")))
        )
    info = info_of(caught.value)
    assert (caught.value.details(), info.reason) == ("Invalid model name", "MODEL_NOT_FOUND")
    assert info.metadata["details"] == "Model 'nope' is not supported"


async def test_create_when_upstream_refuses_then_its_status_and_code_arrive(served: Served) -> None:
    served.chat.upstream.will(error_reply(422, {"error": {"message": "odd", "code": "c1", "param": "p1"}}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=request()))
    info = info_of(caught.value)
    assert (caught.value.details(), info.reason) == ("odd", "UPSTREAM_REJECTED")
    assert (info.metadata["upstream_status"], info.metadata["upstream_code"], info.metadata["param"]) == (
        "422",
        "c1",
        "p1",
    )


async def test_stream_when_raw_and_gated_then_first_token_arrives_before_the_second_is_sent(served: Served) -> None:
    gate = Gate()
    first, *rest = sse(delta("one"), delta("two", "stop"))
    served.chat.upstream.will(Reply(body=[first, gate, *rest], content_type="text/event-stream"))
    chat = pb.ChatRequest(body_json=raw_body("x", stream=True))
    call = served.stub.StreamChatCompletion(pb.StreamChatCompletionRequest(chat=chat, raw=True))
    assert (await call.read()).start.remembered == "pending"
    assert (await asyncio.wait_for(call.read(), 5)).raw == first
    gate.open()
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    assert b"".join(e.raw for e in events) == b"".join(rest)
    assert events[-1].end.memory.remembered == "true"


async def test_stream_when_typed_then_chunks(served: Served) -> None:
    served.chat.upstream.will(stream_reply("a", "b"))
    call = served.stub.StreamChatCompletion(pb.StreamChatCompletionRequest(chat=request()))
    start, *chunks, end = [event async for event in call]
    assert start.WhichOneof("event") == "start"
    assert [c.chunk.content for c in chunks] == ["a", "b", ""]
    assert chunks[-1].chunk.finish_reason == "stop"
    assert json.loads(chunks[0].chunk.chunk_json) == delta("a")
    assert end.end.memory.remembered == "true"


HALF = "\ud83d"
"""Half of a surrogate pair, as a JSON escape can write it."""


@pytest.mark.parametrize("model", ["fake-1", "memoryos/recall"])
async def test_create_when_a_message_holds_half_a_character_then_it_is_answered(served: Served, model: str) -> None:
    served.chat.upstream.will(json_reply("yes"))
    history = [{"role": "user", "content": HALF}, {"role": "assistant", "content": HALF}]
    text = json.dumps({"model": model, "messages": [*history, {"role": "user", "content": f"tea {HALF}"}]})
    answer = await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=pb.ChatRequest(body_json=text)))
    assert answer.memory.remembered == "true"
    assert served.chat.memory.said()[0] == ("user", "tea \ufffd")
    if model == "fake-1":
        assert served.chat.upstream.received[0].body == text.encode()


async def test_create_when_the_answer_holds_half_a_character_then_its_bytes_stay(served: Served) -> None:
    choice = {"index": 0, "message": {"content": f"hi {HALF}"}, "finish_reason": f"stop{HALF}"}
    body = json.dumps({"choices": [choice]}).encode()
    served.chat.upstream.will(Reply(body=[body]))
    chat = pb.ChatRequest(body_json=raw_body("x"), memory=pb.MEMORY_MODE_OFF)
    answer = await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=chat))
    assert answer.body == body
    assert (answer.content, answer.finish_reason) == ("hi \ufffd", "stop\ufffd")


@pytest.mark.parametrize("raw", [True, False])
async def test_stream_when_a_character_is_cut_in_two_deltas_then_it_is_remembered_whole(
    served: Served, raw: bool
) -> None:
    deltas = (delta(f"hi {HALF}"), delta("\ude00 there"), delta(None, f"stop{HALF}"))
    frames = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in deltas]
    frames.append(b"data: [DONE]\n\n")
    served.chat.upstream.will(Reply(body=frames, content_type="text/event-stream"))
    request = pb.StreamChatCompletionRequest(chat=pb.ChatRequest(body_json=raw_body("x", stream=True)), raw=raw)
    events = [event async for event in served.stub.StreamChatCompletion(request)]
    assert b"".join(event.raw for event in events) == (b"".join(frames) if raw else b"")
    assert "".join(event.chunk.content for event in events) == ("" if raw else "hi \U0001f600 there")
    assert served.chat.memory.said() == [("user", "x"), ("assistant", "hi \U0001f600 there")]
    assert events[-1].end.memory.remembered == "true"


async def test_create_when_upstream_refuses_in_half_characters_then_its_error_arrives(served: Served) -> None:
    error = {"message": f"odd {HALF}", "code": f"c{HALF}", "param": f"p{HALF}"}
    served.chat.upstream.will(error_reply(400, {"error": error}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=request()))
    info = info_of(caught.value)
    assert (caught.value.details(), info.reason) == ("odd \ufffd", "UPSTREAM_REJECTED")
    assert (info.metadata["upstream_code"], info.metadata["param"]) == ("c\ufffd", "p\ufffd")


@pytest.mark.parametrize("streamed", [True, False])
async def test_call_when_client_is_gone_then_upstream_is_closed_within_100_ms(served: Served, streamed: bool) -> None:
    gate = Gate()
    frames = [*sse(delta("a"), done=False), gate]
    served.chat.upstream.will(
        Reply(body=frames, content_type="text/event-stream") if streamed else Reply(before=[gate])
    )
    if streamed:
        call = served.stub.StreamChatCompletion(pb.StreamChatCompletionRequest(chat=request(), raw=True))
        await call.read()
        await call.read()
    else:
        call = served.stub.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=request()))
        task = asyncio.ensure_future(call.wait_for_connection())
        await asyncio.wait_for(gate.reached.wait(), 5)
        task.cancel()
    left = time.monotonic()
    call.cancel()
    (received,) = served.chat.upstream.received
    await asyncio.wait_for(received.closed.wait(), 2)
    assert received.closed_at is not None
    assert received.closed_at - left < 0.5
    assert served.chat.memory.said() == []


async def test_stream_when_cut_midway_then_bytes_then_unavailable(served: Served) -> None:
    frames = sse(delta("a"), done=False)
    served.chat.upstream.will(Reply(body=frames, content_type="text/event-stream"))
    call = served.stub.StreamChatCompletion(pb.StreamChatCompletionRequest(chat=request(), raw=True))
    await call.read()
    assert (await call.read()).raw == frames[0]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(caught.value).reason == "UPSTREAM_FAILED"


async def test_list_models_when_asked_then_builtin_and_the_providers(served: Served) -> None:
    answer = await served.stub.ListModels(pb.ListModelsRequest())
    assert answer.object == "list"
    assert [(m.id, m.object, m.owned_by) for m in answer.data] == [
        ("memoryos/recall", "model", "memoryos"),
        ("fake-1", "model", "fake"),
    ]


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info
