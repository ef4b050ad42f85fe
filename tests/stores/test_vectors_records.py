"""Records on the real vector process."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import qdrant_edge as qe
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryos_server.domain.core.faults import BackendDown, Exists
from memoryos_server.domain.ports import IndexedRecord, Record, RecordFilter, RecordQuery, SearchQuery, Subject
from memoryos_server.stores import edge_process
from memoryos_server.stores.edge_client import EdgeClient, EdgeError
from memoryos_server.stores.edge_points import InvalidRequestError, Prepared
from memoryos_server.stores.vectors_edge import EdgeVectors
from tests.stores.embedded_fixtures import Keys, indexed, kill, restarted, subject, turn
from tests.stores.embedded_fixtures import opened as embedded
from tests.stores.qdrant_fixtures import Opened

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="mos-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield


@pytest.fixture
async def vectors(opened: Opened, tmp_path: Path) -> AsyncIterator[EdgeVectors]:
    async with opened(tmp_path) as (_, vectors):
        yield vectors


def record(text: str = "tea", **fields: object) -> Record:
    made = Record(str(uuid4()), "memory", 1, text, "rule", NOON, NOON, NOON)
    return replace(made, **fields)  # type: ignore[arg-type]  # any of its fields


def found_by(made: Record, small: Sequence[float] | None = None) -> IndexedRecord:
    return IndexedRecord(made, {word: 1.0 for word in made.text.split()}, {} if small is None else {"small": small})


def question(words: str, kind: str = "memory", **fields: object) -> RecordQuery:
    return replace(RecordQuery(kind, {word: 1.0 for word in words.split()}, {}, 50), **fields)  # type: ignore[arg-type]


async def ids(vectors: EdgeVectors, who: Subject, asked: RecordQuery) -> set[str]:
    return {hit.record.id for hit in (await vectors.find(who, [asked]))[0]}


async def listed(vectors: EdgeVectors, who: Subject, **fields: object) -> set[str]:
    chosen = RecordFilter(**{"kind": "memory", **fields})  # type: ignore[arg-type]  # any of its fields
    scanned = [made.id async for made in vectors.scan(who, chosen)]
    paged, total = await vectors.page(who, chosen, 0, 1000)
    assert scanned == sorted(made.id for made in paged)
    assert total == len(scanned)
    return set(scanned)


async def test_put_when_read_then_every_field_is_as_it_was_and_history_only_if_asked_for(vectors: EdgeVectors) -> None:
    ann = subject()
    made = Record(
        id=str(uuid4()),
        kind="segment",
        version=7,
        text='茶 tea "quoted" 🫖\n',
        type="qa",
        created_at=datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        updated_at=NOON,
        since=NOON - HOUR,
        until=NOON,
        tags=("b", "a"),
        sources=(str(uuid4()), str(uuid4())),
        session_id="s1",
        data={"n": 1, "x": [1.5, None, {"y": "z"}]},
        history=({"version": 6, "text": "older"}, {"version": 5}),
    )
    await vectors.put(ann, [found_by(made)])
    chosen = RecordFilter("segment")
    assert await vectors.records(ann, [made.id], history=True) == [made]
    assert await vectors.page(ann, chosen, 0, 9, history=True) == ([made], 1)
    assert [one async for one in vectors.scan(ann, chosen, history=True)] == [made]
    short = replace(made, history=())
    assert await vectors.records(ann, [made.id, str(uuid4()), "x", made.id]) == [short]
    assert await vectors.page(ann, chosen, 0, 9) == ([short], 1)
    assert [one async for one in vectors.scan(ann, chosen)] == [short]
    assert [hit.record for hit in (await vectors.find(ann, [question("tea", "segment", as_of=NOON - HOUR)]))[0]] == [
        short
    ]
    assert await vectors.owner(made.id) == ann.id
    assert await vectors.get(ann, [made.id]) == []  # no turn


async def test_put_when_versions_differ_then_the_highest_stays(vectors: EdgeVectors) -> None:
    ann, first = subject(), record("tea")
    second, third = replace(first, version=2, text="milk"), replace(first, version=3, text="wine")
    await vectors.put(ann, [found_by(second, [1, 0, 0, 0])])
    await vectors.put(ann, [found_by(first, [0, 1, 0, 0])])
    assert (await vectors.records(ann, [first.id]))[0] == second
    assert await ids(vectors, ann, question("tea")) == set()
    await vectors.put(ann, [found_by(third), found_by(second)])
    assert (await vectors.records(ann, [first.id]))[0] == third
    assert await ids(vectors, ann, question("milk")) == set()
    # The replaced version's vector is gone with it.
    assert await ids(vectors, ann, question("", dense={"small": [1, 0, 0, 0]})) == set()
    await vectors.put(ann, [found_by(third, [0, 0, 1, 0])])
    await vectors.put(ann, [found_by(third)])  # a replay without vectors
    assert await ids(vectors, ann, question("", dense={"small": [0, 0, 1, 0]})) == {first.id}


async def test_put_when_an_id_is_used_otherwise_then_it_is_refused_and_nothing_is_written(vectors: EdgeVectors) -> None:
    ann, bob = subject("ann"), subject("bob")
    said, hers, other = turn("tea"), record("tea"), record("milk")
    await vectors.insert(ann, [indexed(said)])
    await vectors.put(ann, [found_by(hers)])
    for who, taken in ((ann, said.id), (ann, hers.id), (bob, hers.id)):
        kind = "segment" if who is ann else "memory"
        with pytest.raises(Exists):
            await vectors.put(who, [found_by(other), found_by(record("wine", id=taken, kind=kind, version=9))])
    assert await vectors.records(ann, [hers.id, other.id]) == [hers]
    assert await vectors.get(ann, [said.id]) == [said]
    assert await vectors.count() == 2


async def test_reads_when_subjects_and_kinds_share_words_then_each_sees_its_own(opened: Opened, tmp_path: Path) -> None:
    ann, bob, kinds = subject("ann"), subject("bob"), ("segment", "fact", "memory")
    made = {(who.id, kind): record("tea", kind=kind) for who in (ann, bob) for kind in kinds}
    async with opened(tmp_path, Keys(shared=os.urandom(32), sealing=False)) as (_, vectors):
        for who in (ann, bob):
            await vectors.put(who, [found_by(made[who.id, kind], [1, 0, 0, 0]) for kind in kinds])
        await vectors.insert(ann, [indexed(turn("tea"), small=[1, 0, 0, 0])])
        everything = [one.id for one in made.values()]
        for who in (ann, bob):
            for kind in kinds:
                own = {made[who.id, kind].id}
                assert await ids(vectors, who, question("tea", kind, dense={"small": [1, 0, 0, 0]})) == own
                assert await listed(vectors, who, kind=kind) == own
            assert {one.id for one in await vectors.records(who, everything)} == {made[who.id, k].id for k in kinds}
        assert len(await vectors.search(ann, SearchQuery({"l": {"tea": 1.0}}, {"small": [1, 0, 0, 0]}, 9))) == 1
        assert len(await vectors.near(ann, {"small": [1, 0, 0, 0]}, 9)) == 1
        await vectors.remove(bob, everything)
        assert await vectors.count(bob) == 0
        assert await vectors.count(ann) == 4
        await vectors.delete_subject(ann)
        assert await vectors.count() == 0
        assert await vectors.near(ann, {"small": [1, 0, 0, 0]}, 9) == []


async def test_find_when_another_kind_is_written_then_lexical_scores_do_not_change(vectors: EdgeVectors) -> None:
    ann, hers = subject(), [record("tea cup"), record("tea")]
    await vectors.put(ann, [found_by(one) for one in hers])
    before = {hit.record.id: hit.scores for hit in (await vectors.find(ann, [question("tea cup")]))[0]}
    await vectors.put(ann, [found_by(record("cup", kind="fact")) for _ in range(30)])
    await vectors.insert(ann, [indexed(turn("cup")) for _ in range(30)])
    after = {hit.record.id: hit.scores for hit in (await vectors.find(ann, [question("tea cup")]))[0]}
    assert before == after
    assert before.keys() == {one.id for one in hers}


async def test_find_when_there_are_several_queries_then_each_has_its_answer(vectors: EdgeVectors) -> None:
    ann, tea, fact = subject(), record("tea"), record("tea", kind="fact")
    await vectors.put(ann, [found_by(tea, [1, 0, 0, 0]), found_by(fact)])
    asked = [question("tea", "fact"), question("wine"), question("tea", dense={"small": [1, 0, 0, 0]})]
    answers = await vectors.find(ann, asked)
    assert [[hit.record.id for hit in hits] for hits in answers] == [[fact.id], [], [tea.id]]
    assert answers[2][0].scores.keys() == {"lexical", "small"}
    assert await vectors.find(ann, []) == []
    assert await vectors.find(ann, [question("tea", limit=0)]) == [[]]


async def test_find_when_only_the_best_are_wanted_then_words_and_meaning_choose_them_together(
    vectors: EdgeVectors,
) -> None:
    ann = subject()
    both, words, meaning, neither = record("tea cup"), record("tea cup set"), record("mug"), record("cup")
    near, far = [1.0, 0, 0, 0], [0, 1.0, 0, 0]
    made = [(both, near), (words, far), (meaning, near), (neither, far)]
    await vectors.put(ann, [found_by(one, vector) for one, vector in made])
    asked = question("tea cup", dense={"small": near})
    assert await ids(vectors, ann, asked) == {one.id for one, _ in made}
    assert await ids(vectors, ann, replace(asked, most=1)) == {both.id}
    assert neither.id not in await ids(vectors, ann, replace(asked, most=3))
    assert await ids(vectors, ann, replace(asked, most=0)) == set()


async def test_find_when_as_of_moves_then_what_was_believed_at_that_time_is_found(vectors: EdgeVectors) -> None:
    ann = subject()
    old, new = record("tea", since=NOON - HOUR, until=NOON), record("tea", since=NOON)
    later = record("tea", since=datetime.now(UTC) + 24 * HOUR)
    await vectors.put(ann, [found_by(one, [1, 0, 0, 0]) for one in (old, new, later)])
    for dense in ({}, {"small": [1, 0, 0, 0]}):
        words = "" if dense else "tea"

        async def at(
            when: datetime | None, words: str = words, dense: Mapping[str, Sequence[float]] = dense
        ) -> set[str]:
            return await ids(vectors, ann, question(words, as_of=when, dense=dense))

        assert await at(NOON - HOUR - timedelta(microseconds=1)) == set()
        assert await at(NOON - HOUR) == {old.id}
        assert await at(NOON - timedelta(microseconds=1)) == {old.id}
        assert await at(NOON) == {new.id}
        assert await at(None) == {new.id}
        assert await at(later.since) == {new.id, later.id}
    assert await listed(vectors, ann, current=True) == {new.id, later.id}
    assert await listed(vectors, ann) == {old.id, new.id, later.id}


async def test_lists_when_filtered_then_all_conditions_hold_together(vectors: EdgeVectors) -> None:
    ann, source, other = subject(), str(uuid4()), str(uuid4())
    ab = record(tags=("a", "b"), type="rule", sources=(source,))
    b = record(tags=("b",), type="fact", sources=(source, other))
    none = record(type="rule")
    await vectors.put(ann, [found_by(one) for one in (ab, b, none)])
    assert await listed(vectors, ann, tags=("a", "b")) == {ab.id, b.id}
    assert await listed(vectors, ann, tags=("a", "b"), match_all=True) == {ab.id}
    assert await listed(vectors, ann, tags=("A",)) == set()
    assert await listed(vectors, ann, tags=("b",), type="fact") == {b.id}
    assert await listed(vectors, ann, type="rule") == {ab.id, none.id}
    assert await listed(vectors, ann, sources=(other, str(uuid4()))) == {b.id}
    assert await listed(vectors, ann, sources=(source,), type="rule") == {ab.id}
    assert await ids(vectors, ann, question("tea", type="fact")) == {b.id}


def test_page_when_walked_then_each_record_comes_once_and_in_order(tmp_path: Path) -> None:
    async def walk(vectors: EdgeVectors, ages: list[int], step: int) -> None:
        ann, bob = subject("ann"), subject("bob")
        made = [record(created_at=NOON - age * timedelta(microseconds=1)) for age in ages]
        await vectors.put(ann, [found_by(one) for one in made])
        await vectors.put(bob, [found_by(record()) for _ in range(3)])
        walked: list[Record] = []
        for offset in range(0, len(made) + step, step):
            page, total = await vectors.page(ann, RecordFilter("memory"), offset, step)
            assert total == len(made)
            walked += page
        assert walked == sorted(made, key=lambda one: (-one.created_at.timestamp(), one.id))

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        _, vectors = runner.run(stack.enter_async_context(embedded(tmp_path)))

        @settings(max_examples=40, deadline=None)
        @given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 12))
        def check(ages: list[int], step: int) -> None:
            runner.run(walk(vectors, ages, step))

        try:
            check()
        finally:
            runner.run(stack.aclose())


async def test_put_when_there_are_ten_thousand_then_a_reader_sees_all_or_none(tmp_path: Path) -> None:
    async with embedded(tmp_path) as (_, vectors):
        ann, chosen = subject(), RecordFilter("memory")
        made = [found_by(record(f"tea {secrets.token_hex(8)}"), [1, i % 7, 0, 0]) for i in range(10_000)]
        seen, done = set(), asyncio.Event()

        async def watch() -> None:
            while not done.is_set():
                seen.add((await vectors.page(ann, chosen, 0, 1))[1])
                await asyncio.sleep(0.001)

        watcher = asyncio.create_task(watch())
        await vectors.put(ann, made)
        done.set()
        await watcher
        assert seen <= {0, 10_000}
        assert 0 in seen
        assert (await vectors.page(ann, chosen, 0, 1))[1] == 10_000
        assert [one.id async for one in vectors.scan(ann, chosen)] == sorted(one.record.id for one in made)
        # A replay changes nothing.
        await vectors.put(ann, made)
        assert await vectors.count() == 10_000


async def test_put_when_there_are_thousands_then_all_are_there_and_a_replay_changes_nothing(
    vectors: EdgeVectors,
) -> None:
    ann, chosen = subject(), RecordFilter("memory")
    made = [found_by(record(f"tea {secrets.token_hex(8)}"), [1, i % 7, 0, 0]) for i in range(3_000)]
    for _ in range(2):
        await vectors.put(ann, made)
        assert (await vectors.page(ann, chosen, 0, 1))[1] == await vectors.count(ann) == 3_000
        assert [one.id async for one in vectors.scan(ann, chosen)] == sorted(one.record.id for one in made)


async def test_scan_when_histories_are_long_then_it_comes_in_pieces_and_whole(vectors: EdgeVectors) -> None:
    ann = subject()
    made = [record(history=({"text": secrets.token_hex(200_000)},)) for _ in range(100)]
    await vectors.put(ann, [found_by(one) for one in made])
    got = [one async for one in vectors.scan(ann, RecordFilter("memory"), history=True)]
    assert got == sorted(made, key=lambda one: one.id)


async def test_staged_when_never_put_then_it_is_not_visible_and_its_number_is_another_client_s(tmp_path: Path) -> None:
    async with embedded(tmp_path) as (stores, vectors):
        ann = subject()
        point = {"id": str(uuid4()), "sparse": ([], []), "dense": {}, "payload": {"s": f"{ann.id}/memory", "v": 1}}
        one, two = EdgeClient(stores.vectors_socket), EdgeClient(stores.vectors_socket)
        await one.call("stage", 1, [point], timeout=5)
        for client in (two, one):
            if client is one:
                await one.close()  # what it staged goes with its connection
            with pytest.raises(EdgeError, match="no longer staged") as caught:
                await client.call("put_staged", 1, timeout=5)
            assert caught.value.kind == "failed"
        assert await vectors.count() == 0
        await one.close()
        await two.close()


def test_staged_when_it_is_too_much_then_the_oldest_set_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_process, "_STAGED_BYTES", 40_000)
    staged = edge_process.Staged()
    point = Prepared(str(uuid4()), {"t": "x" * 5_000}, qe.Point(str(uuid4()), {}, {}), None)
    for number in (1, 2, 1, 2):
        staged.add(number, [point])
    staged.add(3, [point])
    with pytest.raises(LookupError, match="no longer staged"):
        staged.take(1)
    assert len(staged.take(2)) == 2
    assert len(staged.take(3)) == 1
    with pytest.raises(InvalidRequestError):
        staged.add(4, [point] * 5)


async def test_put_when_the_process_is_killed_then_it_is_gone_and_a_replay_brings_it_back(tmp_path: Path) -> None:
    ann, kept, lost, said = subject(), record("kept"), record("lost"), turn("tea")
    async with embedded(tmp_path) as (stores, vectors):
        first = await vectors.put(ann, [found_by(kept, [1, 0, 0, 0])])
        assert await vectors.flush() == first
        newer = replace(kept, version=2, text="newer")

        async def write() -> int:
            await vectors.insert(ann, [indexed(said, small=[0, 1, 0, 0])])
            return await vectors.put(ann, [found_by(lost, [0, 0, 1, 0]), found_by(newer, [0, 0, 0, 1])])

        assert await write() == first
        pid = stores.pids()["vectors"]
        kill(pid)
        await restarted(stores, pid)
        assert await vectors.records(ann, [kept.id, lost.id]) == [kept]
        second = await write()
        assert second != first
        assert await vectors.flush() == second
        assert {one.id: one for one in await vectors.records(ann, [kept.id, lost.id])} == {
            kept.id: newer,
            lost.id: lost,
        }
        assert await ids(vectors, ann, question("", dense={"small": [0, 0, 0, 1]}, limit=1)) == {kept.id}
        assert await vectors.near(ann, {"small": [0, 1, 0, 0]}, 1) == [(said.id, pytest.approx(1, abs=1e-3))]


async def test_put_when_the_process_dies_midway_then_the_backend_is_down(tmp_path: Path) -> None:
    ann = subject()
    made = [found_by(record(secrets.token_hex(2000))) for _ in range(2000)]
    async with embedded(tmp_path) as (stores, vectors):
        await vectors.ping()
        putting = asyncio.create_task(vectors.put(ann, made))
        await asyncio.sleep(0.05)
        pid = stores.pids()["vectors"]
        kill(pid)
        with suppress(BackendDown):  # a fast machine was done before
            await putting
        await restarted(stores, pid)
        assert await vectors.count() == 0


async def test_said_when_a_session_is_long_then_it_is_read_on_from_where_it_was_left(vectors: EdgeVectors) -> None:
    ann, bob = subject("ann"), subject("bob")
    said = [turn(f"{i}", session="one" if i % 2 else "", seq=i) for i in range(1, 21)]
    await vectors.insert(ann, [indexed(one) for one in reversed(said)])
    await vectors.insert(bob, [indexed(turn(session="one", seq=3))])
    odd = [one for one in said if one.session_id == "one"]
    assert await vectors.said(ann, "one", 0, 100) == odd
    assert await vectors.said(ann, "one", 0, 3) == odd[:3]
    assert await vectors.said(ann, "one", odd[2].seq, 100) == odd[3:]
    assert await vectors.said(ann, "", 0, 100) == [one for one in said if one.session_id == ""]
    assert await vectors.said(ann, "two", 0, 100) == []
    assert await vectors.said(ann, "one", 20, 100) == []


async def test_near_when_turns_lie_around_then_the_closest_come_first(vectors: EdgeVectors) -> None:
    ann = subject()
    far, close, words = turn(), turn(), turn()
    await vectors.insert(ann, [indexed(far, small=[0, 1, 0, 0]), indexed(close, small=[3, 1, 0, 0]), indexed(words)])
    found = await vectors.near(ann, {"small": [1, 0, 0, 0]}, 5)
    assert found == [(close.id, pytest.approx(3 / 10**0.5, abs=1e-3)), (far.id, pytest.approx(0, abs=1e-3))]
    assert await vectors.near(ann, {"small": [1, 0, 0, 0]}, 1) == found[:1]
    assert await vectors.near(ann, {}, 5) == []


async def test_remove_when_done_then_no_read_gives_it_and_the_rest_stays(vectors: EdgeVectors) -> None:
    ann = subject()
    gone, stays, note = turn("tea"), turn("tea", seq=2), record("tea")
    await vectors.insert(ann, [indexed(gone, small=[1, 0, 0, 0]), indexed(stays, small=[1, 0, 0, 0])])
    await vectors.put(ann, [found_by(note, [1, 0, 0, 0])])
    asked = SearchQuery({"l": {"tea": 1.0}}, {"small": [1, 0, 0, 0]}, 9)
    assert len(await vectors.search(ann, asked)) == 2
    first = await vectors.remove(ann, [gone.id, note.id, str(uuid4()), "x"])
    assert first == await vectors.flush()
    assert [one.id for one in await vectors.search(ann, asked)] == [stays.id]
    assert [found for found, _ in await vectors.near(ann, {"small": [1, 0, 0, 0]}, 9)] == [stays.id]
    assert await vectors.said(ann, "s1", 0, 9) == [stays]
    assert await vectors.get(ann, [gone.id, stays.id]) == [stays]
    assert await vectors.records(ann, [note.id]) == []
    assert await ids(vectors, ann, question("tea", dense={"small": [1, 0, 0, 0]})) == set()
    assert await vectors.owner(gone.id) is None
    # It may come back, with something else to tell.
    await vectors.insert(ann, [indexed(turn("tea", id=gone.id, seq=77))])
    assert {one.id: one.seq for one in await vectors.search(ann, asked)} == {stays.id: 2, gone.id: 77}
