"""What keeps the vector process in step with the models, on the real process."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports import IndexedRecord, IndexedTurn, Record, RecordQuery, SearchQuery, Subject, Turn
from memoryos_server.stores.vectors_edge import EdgeVectors
from tests.stores.embedded_fixtures import Keys, indexed, kill, restarted, subject, turn
from tests.stores.embedded_fixtures import opened as embedded
from tests.stores.qdrant_fixtures import Opened

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WEST, EAST = {"small": [1, 0, 0, 0]}, {"other": [0, 1, 0]}


@pytest.fixture(autouse=True)
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="mos-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield


def fact(text: str = "tea", version: int = 1) -> Record:
    return Record(str(uuid4()), "fact", version, text, "likes", NOON, NOON, NOON)


def with_words(record: Record, small: Sequence[float] | None = None) -> IndexedRecord:
    return IndexedRecord(record, {word: 1.0 for word in record.text.split()}, {} if small is None else {"small": small})


async def near(vectors: EdgeVectors, who: Subject, **dense: Sequence[float]) -> set[str]:
    return {memory_id for memory_id, _ in await vectors.near(who, dense, 50)}


async def test_dense_when_the_models_change_then_a_walk_fills_the_new_ones_in(opened: Opened, tmp_path: Path) -> None:
    ann, bob, keys = subject("ann"), subject("bob"), Keys()
    said, noted, his = [turn(f"tea {i}") for i in range(30)], fact(), turn("tea")
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(one, small=WEST["small"]) for one in said])
        await vectors.put(ann, [with_words(noted, WEST["small"])])
        await vectors.insert(bob, [indexed(his, small=WEST["small"])])
        assert await vectors.coverage() == (32, 32)
        assert await vectors.unembedded("", 10) == []
    async with opened(tmp_path, keys, dense={"other": 3}, fingerprint="m2") as (_, vectors):
        assert await vectors.coverage() == (32, 0)
        assert await vectors.old_dense() == 1
        assert await vectors.near(ann, {"other": [0, 1, 0]}, 5) == []
        assert len(await vectors.search(ann, SearchQuery({"l": {"tea": 1.0}}, EAST, 50))) == 30
        texts, after = {}, ""
        while lacking := await vectors.unembedded(after, 7):
            assert len(lacking) <= 7
            for stored in lacking:
                who = {ann.id: ann, bob.id: bob}[stored.subject_id]
                held = await vectors.opened(who, stored)
                texts[stored.id] = held.content if isinstance(held, Turn) else held.text
                await vectors.add_dense(who, [(stored.id, EAST)], {stored.id: stored.version})
            after = lacking[-1].id
        assert texts == {one.id: one.content for one in [*said, his]} | {noted.id: "tea"}
        assert list(texts) == sorted(texts)
        assert await vectors.coverage() == (32, 32)
        assert await near(vectors, ann, other=[0, 1, 0]) == {one.id for one in said}
        assert [h.record for h in (await vectors.find(ann, [RecordQuery("fact", {}, EAST, 5)]))[0]] == [noted]
        assert await vectors.drop_old_dense() == 1
        assert await vectors.old_dense() == 0
    async with opened(tmp_path, keys) as (_, vectors):
        assert await vectors.coverage() == (32, 0)  # the first models' were dropped
    async with opened(tmp_path, keys, dense={"other": 3}, fingerprint="m2") as (_, vectors):
        assert await vectors.coverage() == (32, 32)


async def test_dense_when_models_of_one_shape_differ_by_fingerprint_then_their_vectors_do_not_mix(
    opened: Opened, tmp_path: Path
) -> None:
    ann, keys, said = subject(), Keys(), turn()
    async with opened(tmp_path, keys, fingerprint="m1") as (_, vectors):
        await vectors.insert(ann, [indexed(said, small=WEST["small"])])
    async with opened(tmp_path, keys, fingerprint="m2") as (_, vectors):
        assert await near(vectors, ann, small=WEST["small"]) == set()
    async with opened(tmp_path, keys, fingerprint="m1") as (_, vectors):
        assert await near(vectors, ann, small=WEST["small"]) == {said.id}


async def test_dense_when_models_are_not_in_use_then_what_is_removed_or_replaced_leaves_theirs_too(
    opened: Opened, tmp_path: Path
) -> None:
    ann, bob, keys = subject("ann"), subject("bob"), Keys()
    stays, gone, changed, his = turn(), turn(), fact(), turn()
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(one, small=WEST["small"]) for one in (stays, gone)])
        await vectors.put(ann, [with_words(changed, WEST["small"])])
        await vectors.insert(bob, [indexed(his, small=WEST["small"])])
    async with opened(tmp_path, keys, dense={}) as (_, vectors):  # no model at all
        assert await vectors.unembedded("", 5) == []
        await vectors.remove(ann, [gone.id])
        await vectors.put(ann, [with_words(replace(changed, version=2, text="milk"))])
        await vectors.delete_subject(bob)
        assert await vectors.coverage() == (2, 0)
        assert await vectors.old_dense() == 1
    async with opened(tmp_path, keys) as (_, vectors):
        assert await vectors.coverage() == (2, 1)
        assert await near(vectors, ann, small=WEST["small"]) == {stays.id}
        assert await near(vectors, bob, small=WEST["small"]) == set()
        assert [stored.id for stored in await vectors.unembedded("", 5)] == [changed.id]


async def test_add_dense_when_the_point_is_gone_replaced_or_another_s_then_it_gets_none(
    opened: Opened, tmp_path: Path
) -> None:
    ann, bob, kept = subject("ann"), subject("bob"), fact()
    async with opened(tmp_path) as (_, vectors):
        await vectors.put(ann, [with_words(kept)])
        for who, memory_id, version in ((bob, kept.id, 1), (ann, str(uuid4()), 1), (ann, kept.id, 2)):
            await vectors.add_dense(who, [(memory_id, WEST)], {memory_id: version})
            assert await vectors.coverage() == (1, 0)
        await vectors.add_dense(ann, [(kept.id, {})])  # there is nothing to tell of it
        assert await vectors.coverage() == (1, 1)
        assert await vectors.unembedded("", 5) == []


async def test_unembedded_when_few_of_many_lack_vectors_then_they_are_found(opened: Opened, tmp_path: Path) -> None:
    ann = subject()
    async with opened(tmp_path) as (_, vectors):
        said = [indexed(turn(), {}, WEST["small"]) for _ in range(5000)]
        lacking = [indexed(turn(), {}) for _ in range(5)]
        await vectors.insert(ann, said + lacking)
        found = await vectors.unembedded("", 100)
    assert [stored.id for stored in found] == sorted(one.turn.id for one in lacking)


async def test_dense_when_the_process_is_killed_before_a_flush_then_a_walk_or_a_replay_heals_it(tmp_path: Path) -> None:
    ann, kept, lost = subject(), turn(), turn()
    async with embedded(tmp_path) as (stores, vectors):
        await vectors.insert(ann, [indexed(kept)])
        await vectors.flush()
        await vectors.insert(ann, [indexed(lost, small=WEST["small"])])
        await vectors.add_dense(ann, [(kept.id, WEST)])
        pid = stores.pids()["vectors"]
        kill(pid)
        await restarted(stores, pid)
        assert await vectors.coverage() == (1, 0)
        await vectors.insert(ann, [indexed(kept), indexed(lost, small=WEST["small"])])
        assert [stored.id for stored in await vectors.unembedded("", 5)] == [kept.id]
        assert await near(vectors, ann, small=WEST["small"]) == {lost.id}


async def test_terms_when_the_analysis_changes_then_a_walk_replaces_them_and_what_search_gives(
    opened: Opened, tmp_path: Path
) -> None:
    ann, bob, keys = subject("ann"), subject("bob"), Keys()
    said, noted = [turn(f"tea {i}", seq=i) for i in range(12)], fact()
    async with opened(tmp_path, keys) as (_, vectors):
        made = [IndexedTurn(one, {"tea": 1.0}, WEST, ("ann",), (1.0,)) for one in said]
        await vectors.insert(ann, made)
        await vectors.put(ann, [with_words(noted, WEST["small"])])
        assert len(await vectors.search(ann, SearchQuery({"l": {"tea": 1.0}}, {}, 50))) == 12
        assert await vectors.stale(1, "", 50) == []
    async with opened(tmp_path, keys, analysis=2) as (_, vectors):
        fresh = turn("tea", seq=99)
        await vectors.insert(ann, [indexed(fresh, {"TEA": 1.0})])
        after, seen = "", []
        while stale := await vectors.stale(2, after, 5):
            seen += [stored.id for stored in stale]
            terms = {"TEA": 2.0}
            await vectors.replace_terms(bob, [(stored.id, terms, ("bob",), (2.0, 3.0)) for stored in stale])
            await vectors.replace_terms(ann, [(stored.id, terms, ("bob",), (2.0, 3.0)) for stored in stale])
            after = stale[-1].id
        assert seen == sorted([*(one.id for one in said), noted.id])
        assert await vectors.stale(2, "", 50) == []
        assert not len(await vectors.search(ann, SearchQuery({"l": {"tea": 1.0}}, {}, 50)))
        asked = SearchQuery({"l": {"TEA": 1.0}}, WEST, 50, None, frozenset({"bob"}))
        found = {one.id: one for one in await vectors.search(ann, asked)}
        assert found.keys() == {one.id for one in [*said, fresh]}
        for one in said:
            assert (found[one.id].hints, found[one.id].named) == ((2.0, 3.0), True)
            assert found[one.id].scores.keys() == {"l", "small"}
        # What this analysis wrote is not written over by a walk that came late.
        await vectors.replace_terms(ann, [(fresh.id, {"x": 1.0}, (), ())])
        assert {one.id for one in await vectors.search(ann, asked)} >= {fresh.id}
        assert await vectors.records(ann, [noted.id]) == [noted]
        assert await vectors.get(ann, [said[3].id]) == [said[3]]


async def test_files_when_old_vectors_are_dropped_then_nothing_of_them_is_left(tmp_path: Path) -> None:
    ann, keys = subject(secrets.token_hex(8)), Keys()
    async with embedded(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(turn(), small=WEST["small"])])
    async with embedded(tmp_path, keys, fingerprint="m2") as (_, vectors):
        assert len(list((tmp_path / "vectors").glob("dense-*"))) == 2
        await vectors.drop_old_dense()
        assert len(list((tmp_path / "vectors").glob("dense-*"))) == 1


async def test_dense_when_killed_at_any_time_then_whatever_of_main_is_there_is_embedded_and_nothing_flushed_is_lost(
    tmp_path: Path,
) -> None:
    ann, durable, written = subject(), set[str](), 0
    async with embedded(tmp_path) as (stores, vectors):
        for _ in range(4):
            pid, pending = stores.pids()["vectors"], set[str]()

            async def write(pending: set[str]) -> None:
                nonlocal written
                while True:
                    said = [turn(secrets.token_hex(30)) for _ in range(40)]
                    await vectors.insert(ann, [indexed(one, small=WEST["small"]) for one in said])
                    pending |= {one.id for one in said}
                    written += 40
                    if secrets.randbelow(3) == 0:
                        before = set(pending)
                        await vectors.flush()
                        durable.update(before)

            writing = asyncio.create_task(write(pending))
            await asyncio.sleep(0.1 + secrets.randbelow(300) / 1000)
            kill(pid)
            with pytest.raises(BackendDown):
                await writing
            await restarted(stores, pid)
            assert await vectors.unembedded("", 5) == []
            assert {one.id for one in await vectors.get(ann, list(durable))} == durable
    assert durable
    assert written > len(durable)
