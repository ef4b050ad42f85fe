"""The pipeline on the real embedded stores, with parts that fail when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.memory.model import Consolidated, Verdict
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.ports import EventState, IndexedTurn, Record, Subject, Turn
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors

NEVER = 3600.0
THEN = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def words(text: str) -> Mapping[str, float]:
    return dict.fromkeys(text.lower().split(), 1.0)


@dataclass
class WordIndexer:
    """Words as terms; it fails on texts in `refuses`, and counts what it indexed."""

    refuses: dict[str, Exception] = field(default_factory=dict)
    indexed: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        if self.gate:
            await self.gate.wait()
        for turn in turns:
            if failure := self.refuses.get(turn.content):
                raise failure
        self.indexed += [turn.content for turn in turns]
        return [IndexedTurn(turn, words(turn.content), {}) for turn in turns]

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[Mapping[str, float], Mapping[str, Sequence[float]]]]:
        for text in texts:
            if failure := self.refuses.get(text):
                raise failure
        return [(words(text), {}) for text in texts]


@dataclass
class Diary:
    """A digest that writes down what it is given, in order, and fails on texts in `refuses`."""

    refuses: dict[str, Exception] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)

    async def digest(self, subject: Subject, turns: Sequence[Turn]) -> list[Verdict]:
        for turn in turns:
            if failure := self.refuses.get(turn.content):
                raise failure
        self.said += [(subject.user_id, turn.content) for turn in turns]
        return [self.verdicts.get(turn.content, Verdict()) for turn in turns]

    def of(self, user: str) -> list[str]:
        return [content for who, content in self.said if who == user]


@dataclass
class Bundles:
    """A consolidation that takes everything, and says what it took."""

    took: list[list[str]] = field(default_factory=list)
    failure: Exception | None = None

    async def consolidate(self, subject: Subject, memory_ids: Sequence[str], now: datetime) -> Consolidated:
        if self.failure:
            raise self.failure
        self.took.append(list(memory_ids))
        return Consolidated(list(memory_ids))


@dataclass
class Opened:
    stores: EmbeddedStores
    redis: RedisStore
    vectors: EdgeVectors
    pipeline: Pipeline
    indexer: WordIndexer
    digest: Diary
    bundles: Bundles

    async def subject(self, user: str = "ann") -> Subject:
        return await self.redis.subjects.open("default", user)

    async def say(self, *contents: str, user: str = "ann", session: str = "s") -> list[Turn]:
        """Accepts turns one by one; their event ids are their contents."""
        subject = await self.subject(user)
        made = [turn(subject, content, session) for content in contents]
        for each in made:
            await self.pipeline.accept(subject, [each], None)
        return made

    async def state(self, event_id: str, user: str = "ann") -> EventState:
        state = await self.redis.turns.state(await self.subject(user), event_id)
        assert state is not None
        return state


def turn(subject: Subject, content: str, session: str = "s") -> Turn:
    memory_id = derived_uuid(subject.tenant_id, subject.id, content)
    return Turn(memory_id, content, session, "user", "", content, THEN)


def record(subject: Subject, name: str, text: str, **other: Any) -> Record:
    made: dict[str, Any] = {"kind": "memory", "version": 1, "type": "fact"}
    made |= {"created_at": THEN, "updated_at": THEN, "since": THEN} | other
    return Record(id=derived_uuid(subject.id, name), text=text, **made)


async def open_pipeline(stack: AsyncExitStack, home: Path, **options: Any) -> Opened:
    stores = await stack.enter_async_context(EmbeddedStores(home / "data", {}))
    keys = MasterKeys("", home / "keys", home / "data")
    full = options.pop("short_term_turns", 20)
    connected = RedisStore.connect(
        socket_url(stores.redis_socket), keys, Expected(analysis="1"), short_term_turns=full, holder="test"
    )
    redis = await stack.enter_async_context(connected)
    vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects))
    indexer, digest, bundles = options.pop("indexer", None) or WordIndexer(), Diary(), Bundles()
    made: dict[str, Any] = {"flush_interval": 0.05, "retry_interval": 0.05, "backoff": 0.02}
    made |= {"digest": digest, "consolidation": bundles} | options
    pipeline = Pipeline(redis.turns, redis.queue, vectors, indexer, words, redis.heat, **made)
    vectors.on_reconnect(pipeline.restarted)
    await stack.enter_async_context(pipeline)
    return Opened(stores, redis, vectors, pipeline, indexer, digest, bundles)


@asynccontextmanager
async def opened_at(home: Path, **options: Any) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        yield await open_pipeline(stack, home, **options)


async def until(condition: Callable[[], Awaitable[object] | object], seconds: float = 20.0) -> None:
    """Returns once something holds; fails if it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if await held if isinstance(held, Awaitable) else held:
                return
            await asyncio.sleep(0.01)
