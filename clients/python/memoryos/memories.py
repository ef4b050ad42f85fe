"""Typed memories, for both clients: rules, facts and contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message

from memoryos.ids import new_id
from memoryos.model import short, stamp, value, when
from memoryos.v1 import memories_service_pb2 as pb
from memoryos.v1 import types_pb2

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class TypedMemory:
    """A memory that somebody wrote down, or that was extracted.

    Attributes:
        id: The memory's id, which `history` takes too.
        content: The text.
        memory_type: `rule`, `fact` or `context`.
        importance: 0..1; the higher, the sooner it is injected into chats.
        created_at: When it was first known, UTC.
        updated_at: When this version was made, UTC.
        version: From 1.
        duplicate: It was created under a known event: nothing was written.
    """

    id: str
    content: str
    memory_type: str
    importance: float
    created_at: datetime
    updated_at: datetime
    version: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class FoundMemory:
    """A memory that a search found; `score` is the similarity, 0..1."""

    id: str
    content: str
    memory_type: str
    importance: float
    score: float


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """A page of memories, newest first; `total` counts those on all pages."""

    memories: tuple[TypedMemory, ...]
    total: int
    page: int
    page_size: int


@dataclass(frozen=True, slots=True)
class ExtractedMemories:
    """What an extraction kept; `skipped` counts what it left out as duplicates."""

    memories: tuple[TypedMemory, ...]
    skipped: int


class Memories:
    """`Client.memories`. Every method takes `user_id` and `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def create(
        self,
        content: str,
        memory_type: str,
        importance: float | None = None,
        *,
        event_id: str | None = None,
        created_at: datetime | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """Keeps a memory.

        Args:
            content: The text, 1..100,000 characters.
            memory_type: `rule`, `fact` or `context`.
            importance: 0..1; the higher, the sooner it is injected into chats; default 0.5.
            event_id: Makes the memory recognisable when it is sent again later; default: a new one.
            created_at: When it was first known, with a zone, not in the future; default: now.
            user_id: Whose memory it is; default: the client's.
            timeout: Seconds; default: the client's.
        """
        request = _create(content, memory_type, importance, event_id, created_at)
        return _kept(self._client.call("CreateTypedMemory", request, user_id=user_id, timeout=timeout))

    def list(
        self,
        *,
        memory_type: str | None = None,
        page: int | None = None,
        page_size: int | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryPage:
        """A page of memories, newest first; default: the first 20 of all types."""
        request = _list(memory_type, page, page_size)
        return _page(self._client.call("ListTypedMemories", request, user_id=user_id, timeout=timeout))

    def get(
        self,
        memory_id: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """One memory."""
        request = pb.GetTypedMemoryRequest(id=memory_id)
        return _kept(self._client.call("GetTypedMemory", request, user_id=user_id, timeout=timeout))

    def update(
        self,
        memory_id: str,
        *,
        content: str | None = None,
        importance: float | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """Changes a memory's content, its importance, or both; its history keeps the version before."""
        request = pb.UpdateTypedMemoryRequest(id=memory_id, content=content, importance=importance)
        return _kept(self._client.call("UpdateTypedMemory", request, user_id=user_id, timeout=timeout))

    def delete(
        self,
        memory_id: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Deletes a memory and its history."""
        request = pb.DeleteTypedMemoryRequest(id=memory_id)
        self._client.call("DeleteTypedMemory", request, user_id=user_id, timeout=timeout)

    def search(
        self,
        query: str,
        *,
        top_k: int | None = None,
        min_similarity: float | None = None,
        memory_type: str | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> tuple[FoundMemory, ...]:
        """The memories that have to do with a question, best first; default: at most 5, of all types."""
        request = _search(query, top_k, min_similarity, memory_type)
        return _found(self._client.call("SearchTypedMemories", request, user_id=user_id, timeout=timeout))

    def extract(
        self,
        source: str | Sequence[Mapping[str, str]],
        *,
        deduplicate: bool = False,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> ExtractedMemories:
        """Keeps what is worth remembering in a text, or in messages with `role` and `content`.

        Args:
            source: The text, or the messages, oldest first.
            deduplicate: Leaves out what existing memories say already.
            user_id: Whose memory it is; default: the client's.
            timeout: Seconds; default: the client's.
        """
        request = _extract(source, deduplicate)
        return _extracted(self._client.call("ExtractTypedMemories", request, user_id=user_id, timeout=timeout))

    def delete_all(
        self,
        memory_type: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Deletes all memories of a type and gives their number."""
        request = _delete_all(memory_type)
        return _deleted(self._client.call("DeleteTypedMemories", request, user_id=user_id, timeout=timeout))


class AsyncMemories:
    """`AsyncClient.memories`; as `Memories`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def create(
        self,
        content: str,
        memory_type: str,
        importance: float | None = None,
        *,
        event_id: str | None = None,
        created_at: datetime | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """Keeps a memory."""
        request = _create(content, memory_type, importance, event_id, created_at)
        return _kept(await self._client.call("CreateTypedMemory", request, user_id=user_id, timeout=timeout))

    async def list(
        self,
        *,
        memory_type: str | None = None,
        page: int | None = None,
        page_size: int | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> MemoryPage:
        """A page of memories, newest first; default: the first 20 of all types."""
        request = _list(memory_type, page, page_size)
        return _page(await self._client.call("ListTypedMemories", request, user_id=user_id, timeout=timeout))

    async def get(
        self,
        memory_id: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """One memory."""
        request = pb.GetTypedMemoryRequest(id=memory_id)
        return _kept(await self._client.call("GetTypedMemory", request, user_id=user_id, timeout=timeout))

    async def update(
        self,
        memory_id: str,
        *,
        content: str | None = None,
        importance: float | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TypedMemory:
        """Changes a memory's content, its importance, or both; its history keeps the version before."""
        request = pb.UpdateTypedMemoryRequest(id=memory_id, content=content, importance=importance)
        return _kept(await self._client.call("UpdateTypedMemory", request, user_id=user_id, timeout=timeout))

    async def delete(
        self,
        memory_id: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Deletes a memory and its history."""
        request = pb.DeleteTypedMemoryRequest(id=memory_id)
        await self._client.call("DeleteTypedMemory", request, user_id=user_id, timeout=timeout)

    async def search(
        self,
        query: str,
        *,
        top_k: int | None = None,
        min_similarity: float | None = None,
        memory_type: str | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> tuple[FoundMemory, ...]:
        """The memories that have to do with a question, best first; default: at most 5, of all types."""
        request = _search(query, top_k, min_similarity, memory_type)
        return _found(await self._client.call("SearchTypedMemories", request, user_id=user_id, timeout=timeout))

    async def extract(
        self,
        source: str | Sequence[Mapping[str, str]],
        *,
        deduplicate: bool = False,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> ExtractedMemories:
        """Keeps what is worth remembering in a text, or in messages with `role` and `content`."""
        request = _extract(source, deduplicate)
        return _extracted(await self._client.call("ExtractTypedMemories", request, user_id=user_id, timeout=timeout))

    async def delete_all(
        self,
        memory_type: str,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Deletes all memories of a type and gives their number."""
        request = _delete_all(memory_type)
        return _deleted(await self._client.call("DeleteTypedMemories", request, user_id=user_id, timeout=timeout))


def _create(
    content: str, memory_type: str, importance: float | None, event_id: str | None, created_at: datetime | None
) -> pb.CreateTypedMemoryRequest:
    """With an event id in any case, so that repeating the call is safe."""
    return pb.CreateTypedMemoryRequest(
        content=content,
        memory_type=_type(memory_type),
        importance=importance,
        event_id=event_id or new_id(),
        created_at=None if created_at is None else stamp(created_at),
    )


def _list(memory_type: str | None, page: int | None, page_size: int | None) -> pb.ListTypedMemoriesRequest:
    chosen = None if memory_type is None else _type(memory_type)
    return pb.ListTypedMemoriesRequest(memory_type=chosen, page=page, page_size=page_size)


def _search(
    query: str, top_k: int | None, min_similarity: float | None, memory_type: str | None
) -> pb.SearchTypedMemoriesRequest:
    chosen = None if memory_type is None else _type(memory_type)
    return pb.SearchTypedMemoriesRequest(query=query, top_k=top_k, min_similarity=min_similarity, memory_type=chosen)


def _extract(source: str | Sequence[Mapping[str, str]], deduplicate: bool) -> pb.ExtractTypedMemoriesRequest:
    if isinstance(source, str):
        return pb.ExtractTypedMemoriesRequest(text=source, deduplicate=deduplicate)
    messages = [
        pb.ExtractionMessage(
            role=types_pb2.Role.ValueType(value(types_pb2.Role, message["role"], "role")), content=message["content"]
        )
        for message in source
    ]
    return pb.ExtractTypedMemoriesRequest(messages=messages, deduplicate=deduplicate)


def _delete_all(memory_type: str) -> pb.DeleteTypedMemoriesRequest:
    return pb.DeleteTypedMemoriesRequest(memory_type=_type(memory_type))


def _type(name: str) -> pb.MemoryType.ValueType:
    return pb.MemoryType.ValueType(value(pb.MemoryType, name, "memory_type"))


def _memory(message: pb.TypedMemory) -> TypedMemory:
    return TypedMemory(
        id=message.id,
        content=message.content,
        memory_type=short(pb.MemoryType, message.memory_type),
        importance=message.importance,
        created_at=when(message.created_at),
        updated_at=when(message.updated_at),
        version=message.version,
        duplicate=message.duplicate,
    )


def _kept(response: Message) -> TypedMemory:
    return _memory(cast(Any, response).memory)


def _page(response: Message) -> MemoryPage:
    page = cast(pb.ListTypedMemoriesResponse, response)
    return MemoryPage(tuple(map(_memory, page.memories)), page.total, page.page, page.page_size)


def _found(response: Message) -> tuple[FoundMemory, ...]:
    results = cast(pb.SearchTypedMemoriesResponse, response).results
    return tuple(
        FoundMemory(r.id, r.content, short(pb.MemoryType, r.memory_type), r.importance, r.score) for r in results
    )


def _extracted(response: Message) -> ExtractedMemories:
    extracted = cast(pb.ExtractTypedMemoriesResponse, response)
    return ExtractedMemories(tuple(map(_memory, extracted.memories)), extracted.skipped)


def _deleted(response: Message) -> int:
    return cast(pb.DeleteTypedMemoriesResponse, response).deleted
