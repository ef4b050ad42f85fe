"""Several processes on one ledger and one searchable side: here two pipelines, with connections and leases of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.memory.fencing import fenced
from memoryos_server.domain.memory.knowledge import Knowledge
from memoryos_server.domain.memory.partition import Partition
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.retraction import Retraction, Sweeper
from memoryos_server.domain.memory.segments import Consolidator
from memoryos_server.domain.ports import Change, IndexedRecord, RecordFilter, Subject
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import NoEmbedder
from tests.domain.derived_support import ANALYSIS, LANGUAGE, WORDS, Mind, open_mind
from tests.domain.pipeline_support import Bundles, Diary, WordIndexer, record, turn, until, words


@dataclass
class Replica:
    redis: RedisStore
    vectors: EdgeVectors
    pipeline: Pipeline
    indexer: WordIndexer
    digest: Diary
    bundles: Bundles

    async def subject(self, user: str = "ann") -> Subject:
        return await self.redis.subjects.open("default", user)


@asynccontextmanager
async def replicas(home: Path, number: int = 2, **options: Any) -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(EmbeddedStores(home / "data", {}))
        keys = MasterKeys("", home / "keys", home / "data")
        full, swept = options.pop("short_term_turns", 20), options.pop("swept", False)
        made = []
        for _ in range(number):
            redis = await stack.enter_async_context(
                RedisStore.connect(socket_url(stores.redis_socket), keys, Expected(analysis="1"), short_term_turns=full)
            )
            vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects))
            indexer, digest, bundles = WordIndexer(), Diary(), Bundles()
            if swept:
                engine = RecallEngine(vectors, NoEmbedder("a test"), ANALYSIS)
                knowledge = Knowledge(vectors, engine, WORDS.fold, ANALYSIS.text)
                consolidator = Consolidator(vectors, engine, LANGUAGE, knowledge)
                options["sweep"] = Sweeper(vectors, Retraction(vectors, knowledge, consolidator), engine).sweep
            how = {"flush_interval": 0.05, "retry_interval": 0.05, "backoff": 0.02, "shared": redis.shared, **options}
            pipeline = Pipeline(
                *(redis.turns, redis.queue, vectors, indexer, words, redis.heat),
                digest=digest,
                consolidation=bundles,
                **how,
            )
            await stack.enter_async_context(pipeline)
            made.append(Replica(redis, vectors, pipeline, indexer, digest, bundles))
        yield made


async def test_settle_when_another_process_accepted_a_turn_then_it_is_searchable_here(tmp_path: Path) -> None:
    async with replicas(tmp_path, mode="async") as (one, two):
        one.indexer.gate = asyncio.Event()  # whatever it accepts, it does not index
        ann = await one.subject()
        lease = await one.redis.queue.claim(ann.partition, 60)
        assert lease
        for number in range(3):
            said = turn(ann, f"entry {number}")
            await one.pipeline.accept(ann, [said], None)
            assert await two.redis.turns.recent(await two.subject(), 20) != []
            await two.pipeline.settle(await two.subject(), 5)
            assert [t.content for t in await two.vectors.get(ann, [said.id])] == [f"entry {number}"]
        indexed = len(two.indexer.indexed)
        await two.pipeline.settle(await two.subject(), 5)
        assert len(two.indexer.indexed) == indexed == 3
        one.indexer.gate.set()
        await until(lambda: _empty(one))
    assert one.digest.said + two.digest.said == [("ann", f"entry {number}") for number in range(3)]


async def test_digest_when_two_processes_accept_for_one_person_then_each_turn_once_and_in_order(tmp_path: Path) -> None:
    async with replicas(tmp_path, mode="async", short_term_turns=1000) as both:
        ann = await both[0].subject()
        for number in range(60):
            await both[number % 2].pipeline.accept(ann, [turn(ann, f"{number}")], None)
            if number % 20 == 7:
                await asyncio.sleep(0.6)  # so that the partition is looked for by both
        await until(lambda: _empty(both[0]))
        said = [(one.digest.of("ann")) for one in both]
        assert sorted(said[0] + said[1], key=int) == [f"{number}" for number in range(60)]
        for of_one in said:
            assert of_one == sorted(of_one, key=int)


async def test_consolidate_when_a_process_stops_then_another_takes_its_people_over_and_nobody_is_done_twice(
    tmp_path: Path,
) -> None:
    async with replicas(tmp_path, short_term_turns=2, lease_seconds=1.0) as both:
        people = [await both[0].subject(f"user-{number}") for number in range(8)]
        for who in people:
            await both[0].pipeline.accept(who, [turn(who, "one"), turn(who, "two")], None)
        await until(lambda: sum(len(one.bundles.took) for one in both) >= len(people))
        await asyncio.sleep(1.5)
    taken = [memory_id for one in both for took in one.bundles.took for memory_id in took]
    assert sorted(taken) == sorted({turn(who, content).id for who in people for content in ("one", "two")})


async def test_confirm_when_the_lease_went_to_somebody_else_then_is_stale_and_nothing_derived_is_written(
    tmp_path: Path,
) -> None:
    async with (
        replicas(tmp_path / "replicas", lease_seconds=0.3) as (one, two),
        open_mind(tmp_path, meaning=False) as mind,
    ):
        ann = await one.subject()
        tools = one.pipeline._worker._tools
        partition = Partition(ann.partition, tools)
        assert await partition.claim()
        with fenced(partition.confirm):
            await mind.hear("I live in Oslo.")
        assert await _facts(mind) == ["Lives in Oslo"]
        await asyncio.sleep(0.4)  # as a process that is stopped: its lease ends
        assert await two.redis.queue.claim(ann.partition, 60)
        with fenced(partition.confirm), pytest.raises(Stale):
            await mind.hear("I work as a baker.")
        assert await _facts(mind) == ["Lives in Oslo"]
        turns = [one.id for one in mind.said]
        with fenced(partition.confirm), pytest.raises(Stale):
            await mind.consolidator().consolidate(mind.ann, turns, mind.said[-1].timestamp.replace(year=2030))
        assert await mind.records("segment") == []
        await mind.consolidator().consolidate(mind.ann, turns, mind.said[-1].timestamp.replace(year=2030))
        assert len(await mind.records("segment")) == 1


async def test_delete_when_another_process_was_deriving_from_the_turn_then_what_it_made_loses_it(
    tmp_path: Path,
) -> None:
    async with replicas(tmp_path, swept=True) as (one, two):
        ann = await one.subject()
        gone, stays = turn(ann, "secret words"), turn(ann, "plain words")
        await one.pipeline.accept(ann, [gone, stays], None)
        await until(lambda: _empty(one))
        # A segment that the deletion could not have seen, because another process was making it.
        made = replace(record(ann, "s", "secret words plain words"), kind="segment", sources=(gone.id, stays.id))
        await two.vectors.put(ann, [IndexedRecord(made, words(made.text), {})])
        events = {gone.id: (gone.event_id, gone.session_id)}
        await one.pipeline.change(ann, lambda: _this(Change(remove=(gone.id,), events=events)), reads=False)
        await until(lambda: _empty(one))
        (left,) = [r async for r in two.vectors.scan(ann, RecordFilter("segment"))]
        assert left.sources == (stays.id,)
        assert "secret" not in left.text


async def _this(change: Change) -> Change:
    return change


async def test_changes_when_one_store_tells_then_the_others_hear_and_it_does_not(tmp_path: Path) -> None:
    async with replicas(tmp_path) as (one, two):
        heard: dict[str, list[str]] = {"one": [], "two": []}
        one.redis.changes.listen("test", heard["one"].append)
        two.redis.changes.listen("test", heard["two"].append)
        one.redis.changes.tell("test", "ann")
        await until(lambda: heard["two"] == ["ann"])
        assert heard["one"] == []


async def _facts(mind: Mind) -> list[str]:
    return [record.data["sentence"] async for record in mind.vectors.scan(mind.ann, RecordFilter("fact"))]


async def _empty(one: Replica) -> bool:
    return await one.redis.queue.depth() == 0
