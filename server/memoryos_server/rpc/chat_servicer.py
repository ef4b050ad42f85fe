"""ChatService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import types_pb2
from memoryos_server.domain.chat.model import (
    Api,
    ChatBytes,
    ChatFinished,
    ChatRequest,
    ChatStarted,
    MemoryMode,
    MemoryReport,
)
from memoryos_server.domain.chat.receipts import Receipts, Shown
from memoryos_server.domain.chat.request import build_body
from memoryos_server.domain.chat.service import ChatEvent, ChatService
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.faults import Invalid, NotFound
from memoryos_server.domain.core.ids import made_at
from memoryos_server.domain.core.text import sound
from memoryos_server.rpc.convert import optional, stamp
from memoryos_server.rpc.wrap import current_call

_Whole = TypeVar("_Whole", pb.CreateChatCompletionResponse, pb.CreateResponseResponse)
_Event = TypeVar("_Event", pb.StreamChatCompletionResponse, pb.StreamResponseResponse)
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

    def __init__(self, chat: ChatService, receipts: Receipts | None = None) -> None:
        self._chat = chat
        self._receipts = receipts

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, _context: _Context
    ) -> pb.CreateChatCompletionResponse:
        """Answers at once."""
        return await self._complete(_chat_request(request.chat), pb.CreateChatCompletionResponse)

    async def StreamChatCompletion(
        self, request: pb.StreamChatCompletionRequest, _context: _Context
    ) -> AsyncGenerator[pb.StreamChatCompletionResponse, None]:
        """Answers as the words come."""
        asked = _chat_request(request.chat)
        async with aclosing(self._events(asked, request.raw, pb.StreamChatCompletionResponse)) as events:
            async for event in events:
                yield event

    async def CreateResponse(self, request: pb.CreateResponseRequest, _context: _Context) -> pb.CreateResponseResponse:
        """Answers at once, in the newer form."""
        return await self._complete(_response_request(request.chat), pb.CreateResponseResponse)

    async def StreamResponse(
        self, request: pb.StreamResponseRequest, _context: _Context
    ) -> AsyncGenerator[pb.StreamResponseResponse, None]:
        """Answers as the words come, in the newer form."""
        asked = _response_request(request.chat)
        async with aclosing(self._events(asked, request.raw, pb.StreamResponseResponse)) as events:
            async for event in events:
                yield event

    async def _complete(self, asked: ChatRequest, kind: type[_Whole]) -> _Whole:
        answer = await self._chat.complete(caller(), asked)
        current_call().degraded |= answer.memory.degraded
        return kind(
            body=answer.body,
            content=sound(answer.content),
            finish_reason=sound(answer.finish_reason),
            memory=_memory(answer.memory),
            content_type=sound(answer.content_type),
        )

    async def _events(self, asked: ChatRequest, raw: bool, kind: type[_Event]) -> AsyncGenerator[_Event, None]:
        async with aclosing(self._chat.stream(caller(), asked, raw=raw)) as events:
            async for event in events:
                yield _event(event, kind)

    async def GetChatReceipt(self, request: pb.GetChatReceiptRequest, _context: _Context) -> pb.GetChatReceiptResponse:
        """Says which memories went into a chat."""
        if self._receipts is None:
            raise NotFound("There are no receipts here", param="id")
        return _shown(await self._receipts.show(caller(), request.user_id, request.id))

    async def ListModels(self, _request: pb.ListModelsRequest, _context: _Context) -> pb.ListModelsResponse:
        """Lists the models that can be named."""
        models = [
            pb.Model(id=sound(m.id), object="model", created=m.created, owned_by=sound(m.owned_by))
            for m in await self._chat.models()
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
        comment=chat.comment,
    )


def _response_request(chat: pb.ChatRequest) -> ChatRequest:
    if not chat.HasField("body_json"):
        raise Invalid("body_json is required: OpenAI's request as JSON text", param="chat.body_json")
    return replace(_chat_request(chat), api=Api.RESPONSES)


def _body(chat: pb.ChatRequest) -> str:
    temperature, max_tokens = optional(chat, "temperature"), optional(chat, "max_tokens")
    extra = optional(chat, "extra_json")
    if chat.HasField("body_json"):
        if chat.model or chat.messages or (temperature, max_tokens, extra) != (None, None, None):
            raise Invalid("body_json stands instead of the typed fields; give one or the other", param="body_json")
        return chat.body_json
    messages = [(m.role, m.content, optional(m, "name"), optional(m, "message_json")) for m in chat.messages]
    return build_body(chat.model, messages, temperature, max_tokens, extra)


def _event(event: ChatEvent, kind: type[_Event]) -> _Event:
    if isinstance(event, ChatStarted):
        current_call().degraded |= event.memory.degraded
        return kind(start=_memory(event.memory))
    if isinstance(event, ChatBytes):
        return kind(raw=event.data)
    if isinstance(event, ChatFinished):
        return kind(end=pb.ChatEnd(memory=_memory(event.memory)))
    return kind(
        chunk=pb.ChatChunk(content=event.content, finish_reason=sound(event.finish_reason), chunk_json=event.chunk_json)
    )


def _memory(report: MemoryReport) -> pb.ChatMemory:
    return pb.ChatMemory(
        injected=[
            pb.InjectedMemory(id=i.id, tier=_TIERS[i.tier], score=i.score, tokens=i.tokens) for i in report.injected
        ],
        tokens=report.tokens,
        source=report.source,
        remembered=report.remembered,
        event_id=report.event_id,
        session_id=report.session_id,
        provider=report.provider,
        dropped=map(sound, report.dropped),
        receipt_id=report.receipt_id,
        reason=report.reason,
    )


def _shown(shown: Shown) -> pb.GetChatReceiptResponse:
    receipt = shown.receipt
    return pb.GetChatReceiptResponse(
        id=receipt.id,
        created_at=stamp(made_at(receipt.id)),
        model=receipt.model,
        source=receipt.source,
        provider=receipt.provider,
        event_id=receipt.event_id,
        tokens=receipt.tokens,
        budget_tokens=receipt.budget,
        degraded=receipt.degraded,
        injected=[
            pb.ReceiptItem(
                id=item.id,
                tier=_TIERS[item.tier],
                score=item.score,
                tokens=item.tokens,
                importance=item.importance,
                outdated=item.outdated,
                cut=item.cut,
                parts=[types_pb2.ScorePart(name=name, value=value) for name, value in item.parts.items()],
            )
            for item in receipt.items
        ],
        removed=shown.removed,
    )
