"""ChatService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import types_pb2
from memoryos_server.domain.chat.model import (
    ChatBytes,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    MemoryMode,
    MemoryReport,
)
from memoryos_server.domain.chat.request import build_body
from memoryos_server.domain.chat.service import ChatEvent, ChatService
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.rpc.convert import optional
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]

_MODES = {
    pb.MEMORY_MODE_UNSPECIFIED: MemoryMode.ON,
    pb.MEMORY_MODE_OFF: MemoryMode.OFF,
    pb.MEMORY_MODE_READ: MemoryMode.READ,
    pb.MEMORY_MODE_WRITE: MemoryMode.WRITE,
}
_TIERS = {
    "short_term": types_pb2.TIER_SHORT_TERM,
    "episode": types_pb2.TIER_EPISODE,
    "rule": types_pb2.TIER_RULE,
    "fact": types_pb2.TIER_FACT,
    "context": types_pb2.TIER_CONTEXT,
    "segment": types_pb2.TIER_SEGMENT,
    "knowledge": types_pb2.TIER_KNOWLEDGE,
}


class ChatServicer:
    """Serves memoryos.v1.ChatService."""

    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, _context: _Context
    ) -> pb.CreateChatCompletionResponse:
        """Answers at once."""
        answer = await self._chat.complete(caller(), _chat_request(request.chat))
        current_call().degraded |= answer.memory.degraded
        return pb.CreateChatCompletionResponse(
            body=answer.body,
            content=answer.content,
            finish_reason=answer.finish_reason,
            memory=_memory(answer.memory),
            content_type=answer.content_type,
        )

    async def StreamChatCompletion(
        self, request: pb.StreamChatCompletionRequest, _context: _Context
    ) -> AsyncGenerator[pb.StreamChatCompletionResponse, None]:
        """Answers as the words come."""
        async with aclosing(self._chat.stream(caller(), _chat_request(request.chat), raw=request.raw)) as events:
            async for event in events:
                yield _response(event)

    async def ListModels(self, _request: pb.ListModelsRequest, _context: _Context) -> pb.ListModelsResponse:
        """Lists the models that can be named."""
        models = [
            pb.Model(id=m.id, object="model", created=m.created, owned_by=m.owned_by) for m in await self._chat.models()
        ]
        return pb.ListModelsResponse(object="list", data=models)


def _chat_request(chat: pb.ChatRequest) -> ChatRequest:
    if chat.memory not in _MODES:
        raise Invalid("memory must be off, read or write", param="memory")
    return ChatRequest(
        body=_body(chat),
        user_id=chat.user_id,
        session_id=optional(chat, "session_id"),
        memory=_MODES[chat.memory],
        idempotency_key=optional(chat, "idempotency_key"),
    )


def _body(chat: pb.ChatRequest) -> str:
    temperature, max_tokens = optional(chat, "temperature"), optional(chat, "max_tokens")
    extra = optional(chat, "extra_json")
    if chat.HasField("body_json"):
        if chat.model or chat.messages or (temperature, max_tokens, extra) != (None, None, None):
            raise Invalid("body_json stands instead of the typed fields; give one or the other", param="body_json")
        return chat.body_json
    messages = [(m.role, m.content, optional(m, "name"), optional(m, "message_json")) for m in chat.messages]
    return build_body(chat.model, messages, temperature, max_tokens, extra)


def _response(event: ChatEvent) -> pb.StreamChatCompletionResponse:
    if isinstance(event, ChatStarted):
        current_call().degraded |= event.memory.degraded
        return pb.StreamChatCompletionResponse(start=_memory(event.memory))
    if isinstance(event, ChatBytes):
        return pb.StreamChatCompletionResponse(raw=event.data)
    if isinstance(event, ChatFinished):
        return pb.StreamChatCompletionResponse(end=pb.ChatEnd(memory=_memory(event.memory)))
    return pb.StreamChatCompletionResponse(
        chunk=pb.ChatChunk(content=event.content, finish_reason=event.finish_reason, chunk_json=event.chunk_json)
    )


def _memory(report: MemoryReport) -> pb.ChatMemory:
    return pb.ChatMemory(
        injected=[pb.InjectedMemory(id=i.id, tier=_TIERS[i.tier], score=i.score) for i in report.injected],
        tokens=report.tokens,
        source=report.source,
        remembered=report.remembered,
        event_id=report.event_id,
        session_id=report.session_id,
    )
