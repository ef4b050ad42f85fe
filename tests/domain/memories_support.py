"""The typed memories on the real embedded stores, with or without the real model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memoryos.settings import EmbeddingSettings
from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.memories.extract import Extraction
from memoryos_server.domain.memories.extracting import Extracting
from memoryos_server.domain.memories.model import Suggestion
from memoryos_server.domain.memories.notes import ChatNotes
from memoryos_server.domain.memories.sameness import Sameness
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.memories.service import MemoriesService
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.ports import Llm, Subject
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.opening import open_embedder
from memoryos_server.tools.words import Words
from tests.system import CACHE

ANYBODY = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True)
START = datetime(2026, 5, 8, 12, 0, tzinfo=UTC)


class Ticking:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


@dataclass
class Touched:
    """What was counted as accessed."""

    ids: list[str] = field(default_factory=list)

    def touch(self, subject: Subject, ids: Sequence[str]) -> None:
        self.ids += ids


def one_per_line(messages: Sequence[tuple[str, str]], said_at: datetime) -> list[Suggestion]:
    """Rules for tests: every line of the user is a fact."""
    return [Suggestion(line, "fact", 0.5) for role, text in messages if role == "user" for line in text.splitlines()]


@dataclass
class Opened:
    stores: EmbeddedStores
    redis: RedisStore
    vectors: EdgeVectors
    pipeline: Pipeline
    finder: Finder
    memories: MemoriesService
    notes: ChatNotes
    touched: Touched
    forgotten: list[tuple[str, str]]
    words: Words

    def extracting(self, rules: Any = one_per_line, llm: Llm | None = None, **more: Any) -> Extracting:
        extraction = Extraction(rules, llm, "reader" if llm else "", **more)
        sameness = Sameness(self.words.fold, self.words.stem)
        return Extracting(self.redis.subjects, self.vectors, self.pipeline, self.finder, extraction, sameness)

    async def create(self, content: str, kind: str = "fact", who: Caller = ANYBODY, **more: Any) -> str:
        return (await self.memories.create(who, content, kind, **more)).memory.id

    async def contents(self, who: Caller = ANYBODY, **more: Any) -> list[str]:
        return [memory.content for memory in (await self.memories.page(who, **more)).memories]

    async def found(self, query: str, who: Caller = ANYBODY, **more: Any) -> list[str]:
        return [one.memory.content for one in (await self.memories.search(who, query, **more)).found]


@asynccontextmanager
async def open_memories(home: Path, model: str = "none") -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(open_embedder(EmbeddingSettings(model=model), CACHE / "memoryos"))
        assert (model == "none") == (not embedder.names)
        stores = await stack.enter_async_context(EmbeddedStores(home / "data", dict(embedder.names)))
        keys = MasterKeys("", home / "keys", home / "data")
        redis = await stack.enter_async_context(
            RedisStore.connect(socket_url(stores.redis_socket), keys, Expected(analysis="1"))
        )
        vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects))
        words = Words()
        analysis = Analysis(words.stem, words.fold)
        engine = RecallEngine(vectors, embedder, analysis)
        pipeline = Pipeline(redis.turns, redis.queue, vectors, engine, analysis.text, redis.heat, retry_interval=0.05)
        await stack.enter_async_context(pipeline)
        vectors.on_reconnect(pipeline.restarted)
        finder, touched = Finder(vectors, engine), Touched()
        forgotten: list[tuple[str, str]] = []
        memories = MemoriesService(
            redis.subjects,
            vectors,
            pipeline,
            finder,
            touched,
            forget=lambda tenant, user: forgotten.append((tenant, user)),
            now=Ticking(),
        )
        notes = ChatNotes(redis.subjects, vectors, pipeline, finder, touched)
        yield Opened(stores, redis, vectors, pipeline, finder, memories, notes, touched, forgotten, words)
