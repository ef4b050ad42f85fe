"""Both families of vectors on the same random memory: the same answers, the same scores."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from memoryos_server.domain.ports import (
    IndexedRecord,
    IndexedTurn,
    Record,
    RecordFilter,
    RecordQuery,
    SearchQuery,
    Subject,
    Turn,
)
from tests.stores.embedded_fixtures import Keys, subject
from tests.stores.embedded_fixtures import opened as embedded
from tests.stores.qdrant_fixtures import Place, clear, fresh_prefix, opener

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORDS = [f"word{i}" for i in range(60)]
TAGS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="mos-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield


class Chance:
    """Random memory, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # the same again for the same seed

    def id(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def terms(self, most: int = 12) -> dict[str, float]:
        # Some words are common, others rare.
        some = {WORDS[int(self.random.random() ** 2 * len(WORDS))] for _ in range(self.random.randint(1, most))}
        return {word: round(self.random.uniform(0.1, 2.2), 3) for word in sorted(some)}

    def dense(self) -> dict[str, list[float]]:
        if self.random.random() < 0.1:
            return {}
        vector = [self.random.gauss(0, 1) for _ in range(4)]
        length = math.hypot(*vector)
        return {"small": [part / length for part in vector]}

    def turn(self, seq: int) -> IndexedTurn:
        when = NOON + timedelta(seconds=self.random.randint(-10_000, 10_000))
        said = Turn(self.id(), self.id(), self.random.choice(["", "s1", "s2"]), "user", "Ann", self.id(), when, seq)
        hints = (self.random.choice([0.25, 0.5]), float(seq % 4))
        return IndexedTurn(said, self.terms(), self.dense(), tuple(self.random.sample(["ann", "bob"], 1)), hints)

    def record(self, sources: list[str]) -> Record:
        at = NOON + timedelta(seconds=self.random.randint(-50, 0))
        return Record(
            self.id(),
            self.random.choice(["memory", "fact"]),
            1,
            self.id(),
            self.random.choice(["rule", "likes"]),
            at,
            at,
            at - timedelta(seconds=5),
            tags=tuple(self.random.sample(TAGS, self.random.randint(0, 3))),
            sources=tuple(self.random.sample(sources, 2)),
            session_id=self.random.choice(["", "s1"]),
            until=at + timedelta(seconds=1) if self.random.random() < 0.3 else None,
        )


def best_first(scored: Mapping[str, Mapping[str, float]]) -> dict[str, list[tuple[float, str]]]:
    """For each leg, what it found."""
    legs: dict[str, list[tuple[float, str]]] = {}
    for memory_id, scores in scored.items():
        for leg, score in scores.items():
            legs.setdefault(leg, []).append((score, memory_id))
    return {leg: sorted(found, reverse=True) for leg, found in legs.items()}


def assert_same(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> None:
    """The same scores, and the same points but where equal scores meet at the end of a leg."""
    left, right = best_first(one), best_first(other)
    assert left.keys() == right.keys()
    for leg, found in left.items():
        assert [score for score, _ in found] == pytest.approx([score for score, _ in right[leg]], rel=1e-5, abs=1e-6)
        last = found[-1][0]
        clear = {memory_id for score, memory_id in found if score > last + 1e-5}
        assert clear <= {memory_id for _, memory_id in right[leg]}


async def fill(vectors: Any, seed: int, people: list[Subject]) -> dict[str, list[str]]:
    """Writes, replaces and removes; gives everybody's ids of turns and of records."""
    chance, known = Chance(seed), {}
    for who in people:
        turns = [chance.turn(seq) for seq in range(1, 151)]
        await vectors.insert(who, turns)
        ids = [one.turn.id for one in turns]
        records = [chance.record(ids) for _ in range(80)]
        await vectors.put(who, [IndexedRecord(one, chance.terms(), chance.dense()) for one in records])
        again = [replace(one, version=2, text="new") for one in records[::3]]
        await vectors.put(who, [IndexedRecord(one, chance.terms(), chance.dense()) for one in again])
        await vectors.put(who, [IndexedRecord(replace(records[0], text="too late"), {"word1": 9.0}, {})])
        await vectors.remove(who, [*ids[::7], *(one.id for one in records[1::9])])
        known[who.id] = [*ids, *(one.id for one in records)]
    return known


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_families_when_they_hold_the_same_then_they_answer_the_same(
    place: Place, tmp_path: Path, seed: int
) -> None:
    prefix, keys = fresh_prefix(), Keys()
    people = [subject("ann"), subject("bob")]
    async with embedded(tmp_path / "e", keys) as (_, edge), opener(place, prefix)(tmp_path / "q", keys) as (_, live):
        known = await fill(edge, seed, people)
        assert await fill(live, seed, people) == known
        chance = Chance(seed + 100)
        assert await live.coverage() == await edge.coverage()
        for who in people:
            assert await live.count(who) == await edge.count(who)
            for limit in (3, 10, 500):
                for _ in range(8):
                    legs = {"words": chance.terms(5), "window": chance.terms(20), "part": chance.terms(3)}
                    until = NOON if chance.random.random() < 0.3 else None
                    query = SearchQuery(legs, chance.dense(), limit, until, frozenset({"ann"}), frozenset({"part"}))
                    one = {c.id: c for c in await edge.search(who, query)}
                    two = {c.id: c for c in await live.search(who, query)}
                    if limit == 500:
                        assert one.keys() == two.keys()
                        assert_same({k: c.scores for k, c in one.items()}, {k: c.scores for k, c in two.items()})
                    else:
                        no_part = [
                            {k: {n: s for n, s in c.scores.items() if n != "part"} for k, c in f.items()}
                            for f in (one, two)
                        ]
                        assert_same(*no_part)
                    # Each family has names of its own for sessions, but the same turns are of one.
                    sessions = {(one[name].session, two[name].session) for name in one.keys() & two.keys()}
                    assert len(dict(sessions)) == len({other for _, other in sessions}) == len(sessions)
                    for name in one.keys() & two.keys():
                        assert replace(one[name], scores={}, session="") == replace(two[name], scores={}, session="")
                    asked = [
                        RecordQuery(kind, chance.terms(6), chance.dense(), limit, type, as_of)
                        for kind, type, as_of in (
                            ("memory", None, None),
                            ("fact", "likes", None),
                            ("fact", None, NOON - timedelta(seconds=25)),
                        )
                    ]
                    for found, other in zip(await edge.find(who, asked), await live.find(who, asked), strict=True):
                        assert_same({h.record.id: h.scores for h in found}, {h.record.id: h.scores for h in other})
                        texts = {h.record.id: h.record for h in other}
                        assert all(texts.get(h.record.id, h.record) == h.record for h in found)
                    vector = {"small": [0.6, 0.8, 0, 0]}
                    near, other_near = await edge.near(who, vector, limit), await live.near(who, vector, limit)
                    assert_same({i: {"n": s} for i, s in near}, {i: {"n": s} for i, s in other_near})
            for chosen in (
                RecordFilter("memory"),
                RecordFilter("fact", "likes", current=True),
                RecordFilter("memory", tags=("a", "b")),
                RecordFilter("fact", tags=("a", "c"), match_all=True),
                RecordFilter("memory", sources=tuple(known[who.id][:40])),
            ):
                for offset, limit in ((0, 7), (7, 7), (5, 100), (1000, 5)):
                    # Many records have one time: the order among them is by id in both.
                    assert await live.page(who, chosen, offset, limit) == await edge.page(who, chosen, offset, limit)
                assert [r async for r in live.scan(who, chosen)] == [r async for r in edge.scan(who, chosen)]
            for session, after in (("s1", 0), ("s2", 70), ("", 0), ("none", 0)):
                assert await live.said(who, session, after, 20) == await edge.said(who, session, after, 20)
            by_id = {one.id: one for one in await live.get(who, known[who.id])}
            assert by_id == {one.id: one for one in await edge.get(who, known[who.id])}
            mine = {one.id: one for one in await live.records(who, known[who.id], history=True)}
            assert mine == {one.id: one for one in await edge.records(who, known[who.id], history=True)}
            assert not set(await live.get(people[who is people[0]], known[who.id]))
        await live.delete_subject(people[0])
        await edge.delete_subject(people[0])
        assert await live.count() == await edge.count()
        assert await live.coverage() == await edge.coverage()
    await clear(place, prefix)
