"""A real, if small, memory in a list, and a chat service on a provider over TCP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from memoryos.settings import MemorySettings
from memoryos_server.domain.chat.builtin import words
from memoryos_server.domain.chat.model import ChatBytes, ChatRequest
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.core.faults import Exists
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.ports import Turn
from tests.providers import gateway
from tests.upstream import Upstream

THEN = datetime(2026, 2, 18, 11, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Hit:
    turn: Turn
    score: float
    parts: Mapping[str, float] = field(default_factory=lambda: {"lexical": 1.5, "order": -0.5})


@dataclass(frozen=True)
class Topic:
    id: str
    summary: str
    score: float


@dataclass(frozen=True)
class Belief:
    id: str
    text: str
    since: datetime = THEN


@dataclass(frozen=True)
class Found:
    episodes: Sequence[Hit] = ()
    short_term: Sequence[Turn] = ()
    degraded: bool = False
    mid_term: Sequence[Topic] = ()
    knowledge: Sequence[Belief] = ()
    outdated: frozenset[str] = frozenset()


@dataclass
class ListMemory:
    """Memory in a list, searched by shared words; it can be made slow or broken.

    Attributes:
        turns: (tenant, user, turn), in order.
        delay: Seconds that both calls take.
        failure: What both raise, or None.
        recalls: How often it was asked.
        topics: The segments that every question finds.
        beliefs: The facts that every question finds.
        entered: Set when turns were first handed over.
        subjects: Whose they were said to be, of each call.
    """

    turns: list[tuple[str, str, Turn]] = field(default_factory=list)
    delay: float = 0.0
    failure: Exception | None = None
    recalls: int = 0
    topics: Sequence[Topic] = ()
    beliefs: Sequence[Belief] = ()
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    subjects: list[str] = field(default_factory=list)

    def say(self, content: str, *, user: str = "default_user", role: str = "user", tenant: str = "default") -> str:
        memory_id = f"m{len(self.turns)}"
        self.turns.append((tenant, user, Turn(memory_id, memory_id, "", role, "", content, THEN)))
        return memory_id

    def said(self, user: str = "default_user") -> list[tuple[str, str]]:
        return [(turn.role, turn.content) for _, owner, turn in self.turns if owner == user]

    async def recall(self, tenant_id: str, user_id: str, query: str, *, limit: int, explain: bool = False) -> Found:
        self.recalls += 1
        await self._suffer()
        asked = words(query)
        hits = [
            Hit(turn, len(asked & words(turn.content)) / len(asked))
            for tenant, user, turn in self.turns
            if (tenant, user) == (tenant_id, user_id) and asked & words(turn.content)
        ]
        return Found(sorted(hits, key=lambda hit: -hit.score)[:limit], mid_term=self.topics, knowledge=self.beliefs)

    async def remember(self, tenant_id: str, user_id: str, turns: Sequence[NewTurn], *, subject_id: str = "") -> object:
        self.entered.set()
        self.subjects.append(subject_id)
        await self._suffer()
        kept = {turn.event_id: turn for tenant, user, turn in self.turns if (tenant, user) == (tenant_id, user_id)}
        if any(t.event_id in kept and kept[t.event_id].content != t.content for t in turns):
            raise Exists("used before", reason="event_id_conflict")
        for turn in turns:
            assert turn.event_id is not None
            assert turn.timestamp is not None
            if turn.event_id not in kept:
                made = derived_uuid(tenant_id, user_id, turn.event_id)
                new = Turn(made, turn.event_id, turn.session_id, turn.role, turn.name, turn.content, turn.timestamp)
                self.turns.append((tenant_id, user_id, new))
        return None

    async def _suffer(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure


@dataclass(frozen=True)
class Note:
    id: str
    memory_type: str
    content: str
    importance: float = 0.5
    score: float = 0.0
    at: datetime = THEN


@dataclass
class ListNotes:
    """Typed memories in a list, searched by shared words; they can be made slow or broken.

    Attributes:
        kept: (tenant, user, note), in order.
        delay: Seconds that asking takes.
        failure: What asking raises, or None.
        degraded: Whether answers say that something may be missing.
        shown: What was said to be used.
    """

    kept: list[tuple[str, str, Note]] = field(default_factory=list)
    delay: float = 0.0
    failure: Exception | None = None
    degraded: bool = False
    shown: list[str] = field(default_factory=list)

    def note(
        self, kind: str, content: str, importance: float = 0.5, *, user: str = "default_user", tenant: str = "default"
    ) -> str:
        made = Note(f"n{len(self.kept)}", kind, content, importance)
        self.kept.append((tenant, user, made))
        return made.id

    async def for_chat(self, tenant_id: str, user_id: str, query: str) -> NotesFound:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        asked = words(query)
        notes = [
            replace(note, score=len(asked & words(note.content)) / len(asked) if asked else 0.0)
            for tenant, user, note in self.kept
            if (tenant, user) == (tenant_id, user_id)
        ]
        relevant = [note for note in notes if note.memory_type == "rule" or note.score]
        return NotesFound(relevant, self.degraded, self.shown)


@dataclass(frozen=True)
class NotesFound:
    notes: Sequence[Note]
    degraded: bool
    shown: list[str]

    def used(self, ids: Sequence[str]) -> None:
        self.shown.extend(ids)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Chat:
    service: ChatService
    memory: ListMemory
    upstream: Upstream
    clock: Clock
    notes: ListNotes
    spent: list[tuple[Caller, str, Tokens]] = field(default_factory=list)


@asynccontextmanager
async def open_chat(models: Sequence[str] | None = ("fake-1",), **options: Any) -> AsyncIterator[Chat]:
    notes = ListNotes()
    memory, clock = ListMemory(), Clock()
    async with (
        Upstream(models) as upstream,
        gateway(upstream.base_url) as llm,
    ):
        spent: list[tuple[Caller, str, Tokens]] = []
        service = ChatService(
            memory,
            llm,
            MemorySettings(**options),
            notes=notes,
            spent=lambda *what: spent.append(what),
            clock=clock,
        )
        yield Chat(service, memory, upstream, clock, notes, spent)
        await service.drain(1)


ANYONE = Caller("default", anonymous=True, permissions=frozenset({"admin"}))
"""The caller with auth off."""


def body(question: str | None = None, *, messages: list[Any] | None = None, model: str = "fake-1", **more: Any) -> str:
    sent = messages if messages is not None else [{"role": "user", "content": question}]
    return json.dumps({"model": model, "messages": sent} | more)


async def ask(chat: Chat, text: str, who: Caller = ANYONE, **more: Any) -> Any:
    return await chat.service.complete(who, ChatRequest(text, **more))


async def flow(chat: Chat, text: str, *, raw: bool = True, who: Caller = ANYONE, **more: Any) -> list[Any]:
    async with aclosing(chat.service.stream(who, ChatRequest(text, **more), raw=raw)) as events:
        return [event async for event in events]


def data(events: list[Any]) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, ChatBytes))
