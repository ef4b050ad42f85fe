"""A real gRPC server of the generated base classes, whose answers a test writes beforehand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from memoryos.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
)


@dataclass
class Script:
    """What the server does next and what it has seen."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    remaining: list[float] = field(default_factory=list)
    failures: list[Callable[[Any], None]] = field(default_factory=list)
    initial: tuple[tuple[str, str], ...] = ()
    cancelled: threading.Event = field(default_factory=threading.Event)
    hang: bool = False

    def take(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append({k: v for k, v in context.invocation_metadata() if isinstance(v, str)})
        self.remaining.append(context.time_remaining())
        context.send_initial_metadata((*self.initial, ("x-request-id", self.metadata[-1].get("x-request-id", ""))))
        if self.failures:
            self.failures.pop(0)(context)


def failing(
    code: grpc.StatusCode, message: str, reason: str = "", retry: float | None = None, **told: str
) -> Callable[[Any], None]:
    """A failure as the real server says it."""

    def abort(context: Any) -> None:
        details = []
        if reason:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="memoryos", metadata=told))
            details.append(packed)
        if retry is not None:
            packed = any_pb2.Any()
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(retry * 1e9))
            packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            details.append(packed)
        status = status_pb2.Status(code=code.value[0], message=message, details=details)
        context.abort_with_status(rpc_status.to_status(status))

    return abort


class Servicer(
    memory_service_pb2_grpc.MemoryServiceServicer,
    chat_service_pb2_grpc.ChatServiceServicer,
    system_service_pb2_grpc.SystemServiceServicer,
):
    def __init__(self, script: Script) -> None:
        self.script = script

    def AddMemory(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        return memory_service_pb2.AddMemoryResponse(event_id=request.event_id, memory_id="m1")

    def RetrieveMemory(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        response = memory_service_pb2.RetrieveMemoryResponse()
        episode = response.episodes.add(id="m1", role=1, content="I take my coffee black.", score=0.5)
        episode.timestamp.FromJsonString("2026-01-02T03:04:05Z")
        response.long_term.profile = "drinks coffee"
        return response

    def GetMemoryHistory(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        return memory_service_pb2.GetMemoryHistoryResponse(versions=[{"version": 1, "content": "a"}])

    def CreateChatCompletion(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        memory = chat_service_pb2.ChatMemory(injected=[{"id": "m1", "tier": 2, "score": 0.5}], remembered="true")
        return chat_service_pb2.CreateChatCompletionResponse(content="Black.", finish_reason="stop", memory=memory)

    def StreamChatCompletion(self, request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self.script.cancelled.set)
        self.script.take(request, context)
        yield chat_service_pb2.StreamChatCompletionResponse(start={"remembered": "pending"})
        for word in ("Black", "", "."):
            yield chat_service_pb2.StreamChatCompletionResponse(chunk={"content": word})
        while self.script.hang and context.is_active():
            time.sleep(0.01)
        if self.script.failures:
            self.script.failures.pop(0)(context)
        yield chat_service_pb2.StreamChatCompletionResponse(chunk={"finish_reason": "stop"})
        yield chat_service_pb2.StreamChatCompletionResponse(end={"memory": {"remembered": "true", "event_id": "e1"}})

    def ListModels(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        return chat_service_pb2.ListModelsResponse(data=[{"id": "memoryos/recall", "owned_by": "memoryos"}])

    def GetHealthStatus(self, request: Any, context: Any) -> Any:
        self.script.take(request, context)
        return system_service_pb2.GetHealthStatusResponse(mode=2, redis=1, qdrant=2)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    """Where the server listens."""
    server = grpc.server(ThreadPoolExecutor(4))
    servicer = Servicer(script)
    memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(servicer, server)
    chat_service_pb2_grpc.add_ChatServiceServicer_to_server(servicer, server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    script.hang = False
    server.stop(0).wait(5)
