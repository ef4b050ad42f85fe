"""MemoriesService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import memories_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.memories.extracting import Extracting
from memoryos_server.domain.memories.model import Kept, TypedMemory
from memoryos_server.domain.memories.service import MemoriesService
from memoryos_server.rpc.convert import aware, optional, role_name, stamp
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoriesServicer:
    """Serves memoryos.v1.MemoriesService."""

    def __init__(self, memories: MemoriesService, extracting: Extracting) -> None:
        self._memories = memories
        self._extracting = extracting

    async def CreateTypedMemory(
        self, request: pb.CreateTypedMemoryRequest, _context: _Context
    ) -> pb.CreateTypedMemoryResponse:
        """Keeps a memory."""
        kept = await self._memories.create(
            caller(),
            request.content,
            _type_name(request.memory_type),
            importance=optional(request, "importance"),
            event_id=optional(request, "event_id"),
            created_at=aware(request, "created_at"),
        )
        return pb.CreateTypedMemoryResponse(memory=_kept(kept))

    async def ListTypedMemories(
        self, request: pb.ListTypedMemoriesRequest, _context: _Context
    ) -> pb.ListTypedMemoriesResponse:
        """Lists memories by pages."""
        page = await self._memories.page(
            caller(),
            memory_type=_chosen(request),
            page=optional(request, "page"),
            page_size=optional(request, "page_size"),
        )
        current_call().degraded |= page.degraded
        return pb.ListTypedMemoriesResponse(
            memories=[_memory(memory) for memory in page.memories],
            total=page.total,
            page=page.page,
            page_size=page.page_size,
        )

    async def GetTypedMemory(self, request: pb.GetTypedMemoryRequest, _context: _Context) -> pb.GetTypedMemoryResponse:
        """Gives one memory."""
        return pb.GetTypedMemoryResponse(memory=_kept(await self._memories.get(caller(), request.id)))

    async def UpdateTypedMemory(
        self, request: pb.UpdateTypedMemoryRequest, _context: _Context
    ) -> pb.UpdateTypedMemoryResponse:
        """Changes a memory."""
        kept = await self._memories.update(
            caller(),
            request.id,
            content=optional(request, "content"),
            importance=optional(request, "importance"),
            mask=list(request.update_mask.paths) or None,
        )
        return pb.UpdateTypedMemoryResponse(memory=_kept(kept))

    async def DeleteTypedMemory(
        self, request: pb.DeleteTypedMemoryRequest, _context: _Context
    ) -> pb.DeleteTypedMemoryResponse:
        """Deletes a memory."""
        current_call().degraded |= await self._memories.delete(caller(), request.id)
        return pb.DeleteTypedMemoryResponse(id=request.id, deleted=True)

    async def SearchTypedMemories(
        self, request: pb.SearchTypedMemoriesRequest, _context: _Context
    ) -> pb.SearchTypedMemoriesResponse:
        """Finds memories."""
        results = await self._memories.search(
            caller(),
            request.query,
            top_k=optional(request, "top_k"),
            min_similarity=optional(request, "min_similarity"),
            memory_type=_chosen(request),
        )
        current_call().degraded |= results.degraded
        return pb.SearchTypedMemoriesResponse(
            results=[
                pb.FoundMemory(
                    id=one.memory.id,
                    content=one.memory.content,
                    memory_type=_type_value(one.memory.memory_type),
                    importance=one.memory.importance,
                    score=one.score,
                )
                for one in results.found
            ]
        )

    async def ExtractTypedMemories(
        self, request: pb.ExtractTypedMemoriesRequest, _context: _Context
    ) -> pb.ExtractTypedMemoriesResponse:
        """Finds what is worth remembering, and keeps it."""
        extracted = await self._extracting.extract(
            caller(),
            messages=[(role_name(message.role), message.content) for message in request.messages],
            text=optional(request, "text"),
            deduplicate=request.deduplicate,
        )
        current_call().degraded |= extracted.degraded
        return pb.ExtractTypedMemoriesResponse(
            memories=[_memory(memory) for memory in extracted.memories], skipped=extracted.skipped
        )

    async def DeleteTypedMemories(
        self, request: pb.DeleteTypedMemoriesRequest, _context: _Context
    ) -> pb.DeleteTypedMemoriesResponse:
        """Deletes all memories of a type."""
        deleted, degraded = await self._memories.delete_all(caller(), _type_name(request.memory_type))
        current_call().degraded |= degraded
        return pb.DeleteTypedMemoriesResponse(deleted=deleted)


def _kept(kept: Kept) -> pb.TypedMemory:
    current_call().degraded |= kept.degraded
    message = _memory(kept.memory)
    if kept.duplicate:
        message.duplicate = True
    return message


def _memory(memory: TypedMemory) -> pb.TypedMemory:
    return pb.TypedMemory(
        id=memory.id,
        content=memory.content,
        memory_type=_type_value(memory.memory_type),
        importance=memory.importance,
        created_at=stamp(memory.created_at),
        updated_at=stamp(memory.updated_at),
        version=memory.version,
    )


def _chosen(request: pb.ListTypedMemoriesRequest | pb.SearchTypedMemoriesRequest) -> str | None:
    """The type to choose by, or None for all."""
    return _type_name(request.memory_type) if request.HasField("memory_type") else None


def _type_name(value: int) -> str:
    """Such as `rule`; the unspecified one gets a name that no memory has."""
    return pb.MemoryType.Name(pb.MemoryType.ValueType(value)).removeprefix("MEMORY_TYPE_").lower()


def _type_value(name: str) -> pb.MemoryType.ValueType:
    return pb.MemoryType.Value(f"MEMORY_TYPE_{name.upper()}")
