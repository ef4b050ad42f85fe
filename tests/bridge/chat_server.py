from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import chat_service_pb2_grpc, system_service_pb2, system_service_pb2_grpc
from memoryos_server.rpc.grpc_health import HealthBoard

ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],  "odd": 1.0}'
)
FRAMES = (b'data: {"choices":[{"index":0,"delta":{"content":"H"}}]}\n\n', b": ping\r\n\r\n", b"data: [DONE]\n\n")


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
        return pb.CreateChatCompletionResponse(
            body=ANSWER, content_type="application/json; charset=utf-8", memory=memory
        )

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
async def run_chat_server() -> AsyncIterator[tuple[ChatServer, str]]:
    server = grpc.aio.server()
    servicer = ChatServer()
    servicer.gate.set()
    chat_service_pb2_grpc.add_ChatServiceServicer_to_server(servicer, server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(SystemServer(), server)
    board = HealthBoard(["memoryos.v1.SystemService"])
    board.set("memoryos.v1.SystemService", True)
    server.add_generic_rpc_handlers((board.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        servicer.gate.set()
        board.close()
        await server.stop(1)
