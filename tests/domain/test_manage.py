"""Segments as their owner manages them, on the real embedded stores, without a model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.core.faults import BackendDown, Forbidden, Invalid, NotFound
from memoryos_server.domain.core.ids import alias
from memoryos_server.domain.manage import importing
from memoryos_server.domain.manage.markdown import head, section
from memoryos_server.domain.manage.model import NewSegment, Segment, Version
from memoryos_server.domain.manage.service import SegmentService
from memoryos_server.domain.memory.heat import decayed, initial
from memoryos_server.domain.memory.indexing import Indexing
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.progress import Locks
from memoryos_server.domain.ports import Change, Entry, HeatState, IndexedRecord, Record, RecordFilter, RecordQuery
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import NoEmbedder
from memoryos_server.tools.words import Words

ANYBODY = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True)
ELSEWHERE = ANYBODY._replace(tenant_id="elsewhere")
BORN = datetime(2026, 3, 1, 9, 30, 15, 123456, UTC)


@dataclass
class Opened:
    stores: EmbeddedStores
    redis: RedisStore
    vectors: EdgeVectors
    engine: RecallEngine
    segments: SegmentService

    async def bring(self, *segments: NewSegment | str, user: str = "ann", who: Caller = ANYBODY) -> tuple[str, ...]:
        given = [NewSegment(s) if isinstance(s, str) else s for s in segments]
        return (await self.segments.import_segments(who, user, given)).ids

    async def export(self, user: str = "ann", who: Caller = ANYBODY) -> list[Segment]:
        export = await self.segments.export(who, user)
        found = [segment async for piece in export.pieces for segment in piece]
        assert len(found) == export.count
        return found

    async def words(self, query: str, user: str = "ann") -> list[str]:
        terms, _ = await self.engine.query(query)
        subject = await self.redis.subjects.open("default", user)
        (hits,) = await self.vectors.find(subject, [RecordQuery("segment", terms, {}, 50)])
        return [hit.record.text for hit in sorted(hits, key=lambda hit: -hit.scores["lexical"])]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(EmbeddedStores(tmp_path / "data", {}))
        keys = MasterKeys("", tmp_path / "keys", tmp_path / "data")
        redis = await stack.enter_async_context(
            RedisStore.connect(socket_url(stores.redis_socket), keys, Expected(analysis="1"))
        )
        vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects))
        words = Words()
        analysis = Analysis(words.stem, words.fold)
        engine = RecallEngine(vectors, NoEmbedder("a test"), analysis)
        pipeline = Pipeline(redis.turns, redis.queue, vectors, engine, analysis.text, redis.heat, retry_interval=0.05)
        await stack.enter_async_context(pipeline)
        vectors.on_reconnect(pipeline.restarted)
        segments = SegmentService(redis.subjects, vectors, redis.heat, pipeline, initial=initial, decayed=decayed)
        yield Opened(stores, redis, vectors, engine, segments)


async def all_worked_off(opened: Opened) -> None:
    """Waits until no accepted work is left; none of it failed for good."""
    for _ in range(200):
        if not await opened.redis.queue.depth():
            break
        await asyncio.sleep(0.05)
    assert (await opened.redis.queue.depth(), await opened.redis.queue.dead()) == (0, 0)


def whole(**more: object) -> NewSegment:
    """A segment with every field set to something of its own."""
    older = Version(2, "Ann sailed once", ("boat",), BORN, BORN + timedelta(hours=1))
    oldest = Version(1, "Ann was on a boat", (), BORN, BORN)
    made = NewSegment(
        summary="Ann sails on Sundays",
        tags=("sport", "boat"),
        type="faq_candidate",
        id=str(uuid.uuid4()),
        version=4,
        heat=2.7182818,
        access_count=5,
        last_accessed=BORN + timedelta(days=2, microseconds=1),
        created_at=BORN,
        updated_at=BORN + timedelta(days=1),
        since=BORN - timedelta(days=1),
        until=None,
        source_ids=("one", "two"),
        session_id="s-1",
        data={"by": "rules", "derived_tags": ["boat"]},
        history=(older, oldest),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def as_new(segment: Segment) -> NewSegment:
    """What export gives as import takes it."""
    return NewSegment(**{name: getattr(segment, name) for name in NewSegment.__slots__})


async def test_tags_when_some_are_missing_then_one_new_version_with_them(opened: Opened) -> None:
    (segment,) = await opened.bring(NewSegment("Ann likes hiking", ("hobby",)))
    done = await opened.segments.add_tags(ANYBODY, "ann", segment, ["hobby", "outdoors", "work", "outdoors"])
    assert (done.version, done.tags) == (2, ("hobby", "outdoors", "work"))
    again = await opened.segments.add_tags(ANYBODY, "ann", segment, ["work", "hobby"])
    assert (again.version, again.tags) == (2, done.tags)
    gone = await opened.segments.remove_tags(ANYBODY, "ann", segment, ["hobby", "unknown"])
    assert (gone.version, gone.tags) == (3, ("outdoors", "work"))
    versions = await opened.segments.versions(ANYBODY, "ann", segment)
    assert [(v.version, v.tags) for v in versions] == [
        (3, ("outdoors", "work")),
        (2, ("hobby", "outdoors", "work")),
        (1, ("hobby",)),
    ]
    assert len({v.created_at for v in versions}) == 1
    assert [v.updated_at for v in versions] == sorted((v.updated_at for v in versions), reverse=True)


async def test_tags_when_two_writers_add_at_once_then_none_is_lost(opened: Opened) -> None:
    (segment,) = await opened.bring("Ann likes hiking")
    tags = [f"tag {n}" for n in range(12)]
    await asyncio.gather(*(opened.segments.add_tags(ANYBODY, "ann", segment, [tag]) for tag in tags))
    (found,) = await opened.export()
    assert (set(found.tags), found.version, len(found.history)) == (set(tags), 13, 12)


async def test_tags_when_there_would_be_too_many_then_refused(opened: Opened) -> None:
    (segment,) = await opened.bring(NewSegment("x", tuple(f"t{n}" for n in range(60))))
    with pytest.raises(Invalid) as raised:
        await opened.segments.add_tags(ANYBODY, "ann", segment, [f"u{n}" for n in range(5)])
    assert raised.value.param == "tags"
    assert (await opened.export())[0].version == 1


async def test_segment_when_unknown_or_anothers_then_not_found(opened: Opened) -> None:
    (segment,) = await opened.bring("Ann likes hiking")
    await opened.bring("Ben likes tea", user="ben")
    turned = Caller(tenant_id="default", user_id="ben", permissions=frozenset({"memory"}))
    for who, user, name in (
        (ANYBODY, "ben", segment),
        (ANYBODY, "nobody", segment),
        (ANYBODY, "ann", str(uuid.uuid4())),
        (ANYBODY, "ann", "no-uuid"),
        (ELSEWHERE, "ann", segment),
        (turned, "", segment),
    ):
        with pytest.raises(NotFound):
            await opened.segments.add_tags(who, user, name, ["x"])
        with pytest.raises(NotFound):
            await opened.segments.remove_tags(who, user, name, ["x"])
        with pytest.raises(NotFound):
            await opened.segments.versions(who, user, name)
    with pytest.raises(Forbidden):
        await opened.segments.versions(turned, "ann", segment)
    assert await opened.redis.subjects.find("default", "nobody") is None


async def test_search_when_any_or_all_then_the_right_ones_newest_first(opened: Opened) -> None:
    for n, tags in enumerate([("a",), ("b",), ("a", "b"), ("c",), ("A",)]):
        await opened.bring(NewSegment(f"segment {n}", tags, created_at=BORN + timedelta(days=n)))

    async def found(tags: Sequence[str], limit: int | None = None, *, match_all: bool = False) -> tuple[list[str], int]:
        answer = await opened.segments.search(ANYBODY, "ann", tags, limit=limit, match_all=match_all)
        return [segment.summary[-1] for segment in answer.segments], answer.total

    assert await found(["a"]) == (["2", "0"], 2)
    assert await found(["a", "b"]) == (["2", "1", "0"], 3)
    assert await found(["a", "b"], match_all=True) == (["2"], 1)
    assert await found(["a", "b"], 2) == (["2", "1"], 3)
    assert await found(["nothing"]) == ([], 0)
    assert (await opened.segments.search(ANYBODY, "ben", ["a"])).segments == ()
    assert (await opened.segments.search(ELSEWHERE, "ann", ["a"])).segments == ()


async def test_search_when_heat_was_a_while_ago_then_it_has_cooled_and_export_gives_it_as_it_was(
    opened: Opened,
) -> None:
    accessed = datetime.now(UTC) - timedelta(days=7)
    await opened.bring(NewSegment("Ann sails", ("a",), heat=4.0, access_count=3, last_accessed=accessed))
    (found,) = (await opened.segments.search(ANYBODY, "ann", ["a"])).segments
    assert found.heat == pytest.approx(decayed(HeatState(4.0, 3, accessed), datetime.now(UTC)), rel=1e-3)
    assert found.heat < 4
    (exported,) = await opened.export()
    assert (exported.heat, exported.access_count) == (4.0, 3)


async def test_export_when_imported_into_an_empty_tenant_then_the_export_there_is_equal(opened: Opened) -> None:
    await opened.bring(
        whole(), whole(until=BORN + timedelta(days=9), data={}), "just a summary", NewSegment("二", ("标签",))
    )
    (tagged,) = await opened.bring("tagged later")
    await opened.segments.add_tags(ANYBODY, "ann", tagged, ["later"])
    exported = await opened.export()
    assert len(exported) == 5
    back = [as_new(segment) for segment in exported]
    assert await opened.bring(*back, who=ELSEWHERE) == tuple(segment.id for segment in exported)
    assert await opened.export(who=ELSEWHERE) == exported
    # Every other door finds such a segment under the id it is shown under.
    done = await opened.segments.add_tags(ELSEWHERE, "ann", tagged, ["more"])
    assert done.tags == ("later", "more")
    assert (await opened.segments.search(ELSEWHERE, "ann", ["more"])).segments[0].id == tagged
    assert len(await opened.segments.versions(ELSEWHERE, "ann", tagged)) == 3
    assert await opened.export() == exported


async def test_import_when_the_id_is_known_then_unchanged_or_a_new_version(opened: Opened) -> None:
    segment = whole()
    await opened.bring(segment)
    before = await opened.export()
    tally = await opened.segments.import_segments(ANYBODY, "ann", [replace(segment, heat=99.0)])
    assert (tally.created, tally.updated, tally.unchanged) == (0, 0, 1)
    assert await opened.export() == before
    tally = await opened.segments.import_segments(ANYBODY, "ann", [replace(segment, summary="Ann sails on Mondays")])
    assert (tally.created, tally.updated, tally.unchanged) == (0, 1, 0)
    (after,) = await opened.export()
    assert (after.version, after.summary) == (5, "Ann sails on Mondays")
    assert [v.version for v in after.history] == [4, 2, 1]
    assert after.history[0].summary == "Ann sails on Sundays"
    assert await opened.words("Sundays") == []
    assert await opened.words("Mondays") == ["Ann sails on Mondays"]


async def test_import_when_it_goes_on_with_the_chain_that_is_there_then_the_chain_is_taken(opened: Opened) -> None:
    (name,) = await opened.bring(NewSegment("Ann sails", created_at=BORN))
    (here,) = await opened.export()
    ahead = replace(
        as_new(here),
        version=3,
        tags=("x", "y"),
        updated_at=BORN + timedelta(days=2),
        history=(
            Version(2, "Ann sails", ("x",), BORN, BORN + timedelta(days=1)),
            Version(1, "Ann sails", (), BORN, BORN),
        ),
    )
    await opened.bring(ahead)
    versions = await opened.segments.versions(ANYBODY, "ann", name)
    assert [(v.version, v.tags) for v in versions] == [(3, ("x", "y")), (2, ("x",)), (1, ())]
    assert versions[0].updated_at == BORN + timedelta(days=2)


async def test_import_when_the_id_is_another_users_then_a_new_one_and_his_stays(opened: Opened) -> None:
    (name,) = await opened.bring("Ann's own")
    turn = whole(id=name, summary="Ben's")
    (given,) = await opened.bring(turn, user="ben")
    assert given != name
    assert [segment.summary for segment in await opened.export()] == ["Ann's own"]
    (ben,) = await opened.export("ben")
    assert (ben.id, ben.summary) == (given, "Ben's")


@pytest.mark.parametrize("embed", [True, False])
async def test_import_when_several_take_one_free_id_at_once_then_each_has_his_segment_and_no_work_fails(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, embed: bool
) -> None:
    if not embed:
        monkeypatch.setattr(importing, "EMBED_AT_ONCE", 0)
    users = [f"user {number}" for number in range(8)]
    for attempt in range(3):
        name = str(uuid.uuid4())
        told = await asyncio.gather(*(opened.bring(whole(id=name, summary=f"{user}'s"), user=user) for user in users))
        for user, (given,) in zip(users, told, strict=True):
            mine = {one.id: one for one in await opened.export(user)}
            assert mine[given].summary == f"{user}'s"
            assert len(mine) == attempt + 1
            assert (await opened.segments.add_tags(ANYBODY, user, given, ["later"])).version == mine[given].version + 1
            assert given in {one.id for one in (await opened.segments.search(ANYBODY, user, ["later"])).segments}
            assert len(await opened.words(f"{user}'s", user=user)) == attempt + 1
            again = await opened.segments.import_segments(ANYBODY, user, [NewSegment(f"{user}'s, later", id=given)])
            assert (again.ids, again.updated) == ((given,), 1)
    await all_worked_off(opened)


async def test_import_when_the_id_is_a_typed_memorys_then_a_new_one_and_the_memory_stays(opened: Opened) -> None:
    subject = await opened.redis.subjects.open("default", "ann")
    name = str(uuid.uuid4())
    memory = Record(name, "memory", 1, "Ann sails", "fact", BORN, BORN, BORN, data={"importance": 0.5})
    ((terms, dense),) = await opened.engine.terms_and_vectors([memory.text])
    await opened.vectors.put(subject, [IndexedRecord(memory, terms, dense)])
    for user in ("ann", "ben"):
        (given,) = await opened.bring(NewSegment("a segment", id=name), user=user)
        assert given != name
        assert [one.id for one in await opened.export(user)] == [given]
    assert [record.id async for record in opened.vectors.scan(subject, RecordFilter("memory"))] == [name]
    await all_worked_off(opened)


async def test_import_when_its_id_was_taken_and_its_change_comes_back_late_then_what_was_changed_since_stays(
    opened: Opened,
) -> None:
    (name,) = await opened.bring("ben's", user="ben")
    ann = await opened.redis.subjects.open("default", "ann")
    record = Record(name, "segment", 1, "ann's", "qa", BORN, BORN, BORN)
    words = Words()
    text = Analysis(words.stem, words.fold).text
    indexing = Indexing(opened.vectors, opened.engine, text, opened.redis.heat, Locks())
    later = replace(record, text="ann's, brought again", updated_at=BORN + timedelta(days=1))
    await indexing.apply(Entry(f"{ann.partition}/2-0", ann), Change(put=(later,)))
    await indexing.apply(Entry(f"{ann.partition}/1-0", ann, returned=True), Change(put=(record,)))
    assert [(one.id, one.summary) for one in await opened.export("ann")] == [(name, "ann's, brought again")]
    assert [one.summary for one in await opened.export("ben")] == ["ben's"]


async def test_import_when_data_claims_another_id_then_it_is_shown_under_its_own(opened: Opened) -> None:
    (name,) = await opened.bring("the first")
    (other,) = await opened.bring(NewSegment("the second", data={"shown_id": name}))
    assert other != name
    assert {segment.id for segment in await opened.export()} == {name, other}


async def test_import_when_without_ids_then_exported_in_the_order_of_the_request(opened: Opened) -> None:
    texts = [f"number {n}" for n in range(300)]
    await opened.bring(*texts)
    assert [segment.summary for segment in await opened.export()] == texts
    await opened.bring(*[as_new(segment) for segment in await opened.export()], who=ELSEWHERE)
    assert [segment.summary for segment in await opened.export(who=ELSEWHERE)] == texts


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (NewSegment(" "), "summary"),
        (NewSegment("x" * 100_001), "summary"),
        (NewSegment("x", ("",)), "tags"),
        (NewSegment("x", ("t" * 65,)), "tags"),
        (NewSegment("x", ("a\nb",)), "tags"),
        (NewSegment("x", tuple(f"t{n}" for n in range(65))), "tags"),
        (NewSegment("x", id="no-uuid"), "id"),
        (NewSegment("x", id=str(uuid.uuid4()).upper()), "id"),
        (NewSegment("x", version=0), "version"),
        (NewSegment("x", heat=-0.5), "heat_score"),
        (NewSegment("x", heat=float("nan")), "heat_score"),
        (NewSegment("x", session_id="\n"), "session_id"),
        (NewSegment("x", source_ids=("",)), "source_ids"),
        (NewSegment("x", since=BORN, until=BORN - timedelta(1)), "until"),
        (NewSegment("x", data={"derived_tags": 5}), "data_json"),
        (NewSegment("x", data={"a": [{"b": 2**64}]}), "data_json"),
        (NewSegment("x", data={"a": [float("inf")]}), "data_json"),
        (NewSegment("x", data={"\ud800": 1}), "data_json"),
        (NewSegment("x", data=json.loads('{"a":' * 65 + "1" + "}" * 65)), "data_json"),
        (NewSegment("x", version=2, history=(Version(2, "y", (), BORN, BORN),)), "history[0].version"),
        (NewSegment("x", history=(Version(1, " ", (), BORN, BORN),)), "history[0].summary"),
        (NewSegment("x", history=(Version(1, "y", ("",), BORN, BORN),)), "history[0].tags"),
    ],
)
async def test_import_when_one_segment_is_malformed_then_it_is_named_and_nothing_is_written(
    opened: Opened, bad: NewSegment, param: str
) -> None:
    with pytest.raises(Invalid) as raised:
        await opened.bring("good", "good too", bad)
    assert raised.value.param == f"segments[2].{param}"
    assert await opened.redis.subjects.find("default", "ann") is None


async def test_import_when_none_too_many_or_one_id_twice_then_refused(opened: Opened) -> None:
    name = str(uuid.uuid4())
    for given, param in (
        ([], "segments"),
        ([NewSegment("x")] * 10_001, "segments"),
        ([NewSegment("x", id=name), NewSegment("y", id=name)], "segments[1].id"),
    ):
        with pytest.raises(Invalid) as raised:
            await opened.segments.import_segments(ANYBODY, "ann", given)
        assert raised.value.param == param


@pytest.mark.parametrize(("tags", "limit", "param"), [(["x"], 0, "limit"), (["x"], 1001, "limit"), ([], None, "tags")])
async def test_search_when_out_of_range_then_refused(
    opened: Opened, tags: list[str], limit: int | None, param: str
) -> None:
    with pytest.raises(Invalid) as raised:
        await opened.segments.search(ANYBODY, "ann", tags, limit=limit)
    assert raised.value.param == param


async def test_import_when_ten_thousand_then_all_found_and_exported_equal(opened: Opened) -> None:
    many = [NewSegment(f"Ann saw bird number b{n:05}", (f"t{n % 10}",), created_at=BORN) for n in range(10_000)]
    await opened.bring(*many)
    assert (await opened.segments.search(ANYBODY, "ann", ["t3"], limit=5)).total == 1000
    assert await opened.words("b04711") == ["Ann saw bird number b04711"]
    exported = await opened.export()
    await opened.bring(*[as_new(segment) for segment in exported], who=ELSEWHERE)
    assert await opened.export(who=ELSEWHERE) == exported
    tally = await opened.segments.import_segments(ANYBODY, "ann", [as_new(segment) for segment in exported])
    assert (tally.created, tally.updated, tally.unchanged) == (0, 0, 10_000)


async def test_import_when_others_search_meanwhile_then_they_see_none_or_all(opened: Opened) -> None:
    await opened.bring("the first")
    work = asyncio.create_task(opened.bring(*[NewSegment(f"n{n}", ("t",)) for n in range(3000)]))
    seen = set()
    while not work.done():
        seen.add((await opened.segments.search(ANYBODY, "ann", ["t"], limit=1)).total)
        await asyncio.sleep(0.002)
    await work
    assert 0 in seen
    assert seen <= {0, 3000}


async def test_calls_when_the_searchable_side_is_away_then_503_and_after_it_all_is_there(opened: Opened) -> None:
    (segment,) = await opened.bring(NewSegment("Ann sails", ("a",)))
    pid = opened.stores.pids()["vectors"]
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            with pytest.raises(BackendDown):
                await opened.segments.search(ANYBODY, "ann", ["a"])
            with pytest.raises(BackendDown):
                await opened.segments.add_tags(ANYBODY, "ann", segment, ["b"])
            with pytest.raises(BackendDown):
                await opened.export()
    finally:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            try:
                done = await opened.segments.add_tags(ANYBODY, "ann", segment, ["b"])
                break
            except BackendDown:
                await asyncio.sleep(0.05)
    assert done.tags == ("a", "b")
    assert [s.tags for s in await opened.export()] == [("a", "b")]


async def test_records_of_other_kinds_when_they_have_the_id_then_they_are_no_segments(opened: Opened) -> None:
    subject = await opened.redis.subjects.open("default", "ann")
    name = str(uuid.uuid4())
    fact = Record(name, "fact", 1, "Ann sails", "likes", BORN, BORN, BORN, tags=("a",))
    ((terms, dense),) = await opened.engine.terms_and_vectors([fact.text])
    await opened.vectors.put(subject, [IndexedRecord(fact, terms, dense)])
    with pytest.raises(NotFound):
        await opened.segments.add_tags(ANYBODY, "ann", name, ["b"])
    (given,) = await opened.bring(NewSegment("a segment", id=name))
    assert given != name
    assert [record.id async for record in opened.vectors.scan(subject, RecordFilter("fact"))] == [name]


def test_alias_when_made_then_it_sorts_as_its_id() -> None:
    ids = sorted(str(uuid.uuid4()) for _ in range(2000))
    aliases = [alias("0" * 32, name) for name in ids]
    assert aliases == sorted(aliases)
    assert len(set(aliases) - set(ids)) == 2000
    assert alias("1" * 32, ids[0]) != aliases[0]


def test_markdown_when_text_looks_like_structure_then_it_stays_quoted() -> None:
    state = HeatState(1.0, 0, BORN)
    segment = Segment(
        id="id-1",
        version=2,
        summary="# not a heading\n- nor `a list`\n\nlast",
        tags=("a`b", "plain"),
        type="qa",
        heat=state.heat,
        access_count=1,
        last_accessed=BORN,
        created_at=BORN,
        updated_at=BORN,
        since=BORN,
        history=(Version(1, "## before", (), BORN, BORN),),
    )
    text = head("an`n", BORN, 1) + section(segment)
    assert text.startswith("# Memories of ``an`n``\n\nExported 2026-03-01T09:30:15.123456Z, 1 segment.\n")
    assert "\n## id-1\n\n> # not a heading\n> - nor `a list`\n>\n> last\n" in text
    assert "- Tags: ``a`b``, `plain`\n" in text
    assert "accessed 1 time, last" in text
    assert "### Version 1, 2026-03-01T09:30:15.123456Z\n\n> ## before\n\n- Tags: none\n" in text
    assert sum(line.startswith("#") for line in text.splitlines()) == 3
