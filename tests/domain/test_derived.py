"""Retrieval of what is derived while one of the stores does not answer, and what counts as used."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.memory.derived import DerivedRecall
from memoryos_server.domain.memory.digest import Digester
from memoryos_server.domain.memory.heat import HeatKeeper
from memoryos_server.domain.memory.knowledge import Knowledge
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.segments import Consolidator
from memoryos_server.domain.memory.service import MemoryService, Retrieved
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import NoEmbedder
from tests.domain.derived_support import ANALYSIS, LANGUAGE, WORDS

ANYBODY = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True)


@dataclass
class Opened:
    stores: EmbeddedStores
    redis: RedisStore
    memory: MemoryService
    keeper: HeatKeeper

    async def retrieve(self, query: str = "Where do I live?") -> Retrieved:
        return await self.memory.retrieve(ANYBODY, "ann", query)

    @contextmanager
    def silent(self, part: str) -> Iterator[None]:
        """A store that takes connections and does not answer."""
        pid = {str(name): pid for name, pid in self.stores.pids().items()}[part]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(EmbeddedStores(tmp_path / "data", {}))
        keys = MasterKeys("", tmp_path / "keys", tmp_path / "data")
        connected = RedisStore.connect(socket_url(stores.redis_socket), keys, Expected(analysis="1"))
        redis = await stack.enter_async_context(connected)
        vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects, deadline=1.0))
        engine = RecallEngine(vectors, NoEmbedder("a test"), ANALYSIS)
        knowledge = Knowledge(vectors, engine, WORDS.fold, ANALYSIS.text)
        pipeline = Pipeline(
            redis.turns,
            redis.queue,
            vectors,
            engine,
            ANALYSIS.text,
            redis.heat,
            digest=Digester(vectors, engine, knowledge, WORDS.fold, WORDS.stem),
            consolidation=Consolidator(vectors, engine, LANGUAGE, knowledge),
            flush_interval=0.05,
        )
        vectors.on_reconnect(pipeline.restarted)
        await stack.enter_async_context(pipeline)
        keeper = await stack.enter_async_context(HeatKeeper(redis.heat, interval=3600))
        derived = DerivedRecall(vectors, engine, knowledge)
        memory = MemoryService(redis.subjects, redis.turns, vectors, pipeline, engine, derived=derived, heat=keeper)
        yield Opened(stores, redis, memory, keeper)


@pytest.fixture
async def told(opened: Opened) -> Opened:
    await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content="I live in Paris."))
    async with asyncio.timeout(30):
        while not (await opened.retrieve()).knowledge:  # noqa: ASYNC110  # a caller sees no event
            await asyncio.sleep(0.02)
    return opened


async def test_retrieve_when_redis_is_silent_then_knowledge_is_served_and_marked_degraded(told: Opened) -> None:
    with told.silent("valkey"):
        found = await told.retrieve()
    assert [fact.value for fact in found.knowledge] == ["Paris"]
    assert "Paris" in found.profile
    assert (list(found.short_term), found.degraded) == ([], True)


async def test_retrieve_when_the_vectors_are_silent_then_short_term_only_and_marked_degraded(told: Opened) -> None:
    with told.silent("vectors"):
        found = await told.retrieve()
    assert [turn.content for turn in found.short_term] == ["I live in Paris."]
    assert (list(found.episodes), list(found.knowledge), found.profile, found.degraded) == ([], [], "", True)


async def test_retrieve_when_a_fact_is_returned_then_it_counts_as_used_and_recall_for_a_chat_does_not(
    told: Opened,
) -> None:
    ann = await told.redis.subjects.find("default", "ann")
    assert ann is not None
    (fact,) = (await told.retrieve()).knowledge
    await told.keeper.write()
    before = (await told.redis.heat.get(ann, [fact.id]))[fact.id].count
    await told.memory.recall("default", "ann", "Where do I live?", limit=5)
    await told.retrieve()
    await told.keeper.write()
    assert (await told.redis.heat.get(ann, [fact.id]))[fact.id].count == before + 1
