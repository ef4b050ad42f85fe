"""Facts over time: what is believed when, whatever the order, the batches and the repeats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memoryos_server.domain.memory.extraction.model import Fact
from memoryos_server.domain.memory.facts import FIRST_KEPT, KIND, LAST_KEPT, Sighting, Slots, seen_in, sightings
from memoryos_server.domain.ports import Record, Subject, Turn
from memoryos_server.tools.words import Words

ANN = Subject("00" * 16, "default", "ann", 1)
START = datetime(2026, 1, 1, tzinfo=UTC)
SLOTS = Slots(Words().fold)


def day(n: float) -> datetime:
    return START + timedelta(days=n)


def turn(n: int, at: float | None = None, name: str = "") -> Turn:
    return Turn(f"turn-{n}", f"e{n}", "s", "user", name, "", day(n if at is None else at), n)


def lives(value: str, **more: Any) -> Fact:
    return Fact("user", "lives_in", value, f"Lives in {value}" if value else "Moved out", 0.9, **more)


def nuts(*, denied: bool = False) -> Fact:
    polarity: Any = "ended" if denied else "asserted"
    return Fact("user", "allergic_to", "nuts", "Allergic to nuts", 0.9, polarity, denied=denied)


def said(*facts: tuple[int, Fact] | tuple[int, Fact, float]) -> list[Sighting]:
    """Sightings of (turn number, fact, day if it is not the number)."""
    return [s for n, fact, *at in facts for s in sightings(turn(n, at[0] if at else None), [fact], day(100))]


class Book:
    """The store's part: slots with their records, as `Knowledge` keeps them."""

    def __init__(self) -> None:
        self.slots: dict[str, dict[str, Record]] = {}

    def learn(self, seen: Sequence[Sighting]) -> None:
        slots: dict[str, list[Sighting]] = {}
        for one in seen:
            slots.setdefault(SLOTS.of(one), []).append(one)
        for slot, fresh in slots.items():
            stored = list(self.slots.get(slot, {}).values())
            known = [one for record in stored for one in seen_in(record)]
            made = SLOTS.records(ANN, slot, [*known, *fresh], stored)
            for record in made:
                old = self.slots.get(slot, {}).get(record.id)
                assert old is None or record.version > old.version or record == old
            self.slots[slot] = {record.id: record for record in made}

    def forget(self, source: str) -> None:
        """Takes a turn back."""
        for slot, records in self.slots.items():
            stored = list(records.values())
            seen = [one for record in stored for one in seen_in(record) if one.source != source]
            self.slots[slot] = {r.id: r for r in SLOTS.records(ANN, slot, seen, stored)}

    def facts(self) -> list[Record]:
        """What anybody is told of: not the denials of what was not believed."""
        return [r for r in self.all() if r.kind == KIND]

    def believed(self, at: datetime | None = None) -> list[str]:
        return sorted(
            r.data["sentence"]
            for records in self.slots.values()
            for r in records.values()
            if r.kind == KIND
            and (r.until is None if at is None else r.since <= at and (r.until is None or at < r.until))
        )

    def all(self) -> list[Record]:
        return sorted((r for records in self.slots.values() for r in records.values()), key=lambda r: r.id)


def test_learn_when_the_value_is_new_then_the_old_one_is_closed_and_kept() -> None:
    book = Book()
    book.learn(said((1, lives("Paris")), (5, lives("Berlin", valid_from=day(4)))))
    assert book.believed() == ["Lives in Berlin"]
    assert book.believed(day(3)) == ["Lives in Paris"]
    assert book.believed(day(0.5)) == []
    paris = next(r for r in book.all() if r.data["value"] == "Paris")
    assert (paris.until, paris.data["valid_to"]) == (day(5), "2026-01-05T00:00:00Z")


def test_learn_when_an_older_statement_comes_late_then_it_is_closed_by_the_newer_one() -> None:
    book = Book()
    book.learn(said((1, lives("Berlin"), 5)))
    book.learn(said((2, lives("Paris"), 1)))
    assert book.believed() == ["Lives in Berlin"]
    assert book.believed(day(3)) == ["Lives in Paris"]


def test_learn_when_it_comes_late_between_two_of_the_same_then_all_three_times_are_right() -> None:
    book = Book()
    book.learn(said((1, lives("Berlin"), 1), (2, lives("Berlin"), 9)))
    book.learn(said((3, lives("Paris"), 5)))
    assert [book.believed(day(d)) for d in (2, 6, 10)] == [["Lives in Berlin"], ["Lives in Paris"], ["Lives in Berlin"]]


def test_learn_when_it_is_said_again_then_surer_with_both_sources_and_one_fact() -> None:
    book = Book()
    book.learn(said((1, lives("Paris"))))
    once = book.all()[0]
    book.learn(said((2, lives("paris."))))
    (twice,) = book.all()
    assert twice.id == once.id
    assert twice.version > once.version
    assert twice.data["confidence"] > once.data["confidence"]
    assert twice.sources == ("turn-1", "turn-2")
    assert twice.since == day(1)


def test_learn_when_it_ended_then_closed_and_nothing_is_believed() -> None:
    book = Book()
    ended = Fact("user", "works_at", "", "Left the job", 0.9, "ended")
    book.learn(said((1, Fact("user", "works_at", "Acme", "Works at Acme", 0.9)), (4, ended)))
    assert book.believed() == []
    assert book.believed(day(2)) == ["Works at Acme"]


def test_learn_when_the_past_is_told_then_the_present_stays() -> None:
    book = Book()
    book.learn(said((1, lives("Berlin")), (2, lives("Rome", polarity="ended")), (3, lives("Oslo", valid_to=day(-900)))))
    assert book.believed() == ["Lives in Berlin"]
    assert {r.data["value"] for r in book.all()} == {"Berlin", "Rome", "Oslo"}


def test_learn_when_values_add_up_then_each_is_its_own_and_its_opposite_closes_it() -> None:
    book = Book()
    tea, coffee = (Fact("user", "likes", v, f"Likes {v}", 0.8) for v in ("tea", "coffee"))
    book.learn(said((1, tea), (2, coffee), (3, Fact("user", "dislikes", "Coffee", "Dislikes coffee", 0.8))))
    assert book.believed() == ["Dislikes coffee", "Likes tea"]
    assert book.believed(day(2.5)) == ["Likes coffee", "Likes tea"]


def test_learn_when_speakers_have_names_then_one_does_not_contradict_the_other() -> None:
    book = Book()
    for n, (name, place) in enumerate((("Ann", "Paris"), ("Ben", "Rome"), ("ANN", "Oslo"))):
        book.learn(sightings(turn(n, name=name), [lives(place)], day(100)))
    assert book.believed() == ["Lives in Oslo", "Lives in Rome"]


def test_learn_when_traditional_and_simplified_then_one_value() -> None:
    book = Book()
    for n, place in enumerate(("臺灣台北", "台湾台北")):
        book.learn(said((n, Fact("user", "lives_in", place, f"住在{place}", 0.9))))
    assert len(book.all()) == 1


def test_learn_when_said_hundreds_of_times_then_what_is_kept_is_bounded() -> None:
    book = Book()
    for n in range(300):
        book.learn(said((n, lives("Paris"))))
    (record,) = book.all()
    assert len(record.sources) == FIRST_KEPT + LAST_KEPT
    assert record.sources[0] == "turn-0"
    assert record.sources[-1] == "turn-299"
    assert record.since == day(0)
    whole = Book()
    whole.learn(said(*((n, lives("Paris")) for n in range(300))))
    assert _plain(whole) == _plain(book)


def test_records_when_the_turn_that_contradicted_is_taken_back_then_the_belief_before_is_back() -> None:
    seen = said((1, lives("Paris")), (5, lives("Berlin")))
    slot = SLOTS.of(seen[0])
    stored = SLOTS.records(ANN, slot, seen, [])
    left = SLOTS.records(ANN, slot, seen[:1], stored)
    assert [(r.data["value"], r.until) for r in left] == [("Paris", None)]
    assert left[0].version > next(r.version for r in stored if r.id == left[0].id)


def test_contradicted_when_a_later_sighting_disagrees_then_the_earlier_is_named() -> None:
    seen = said((1, lives("Paris")), (2, lives("Berlin")), (3, lives("Berlin")))
    assert SLOTS.contradicted(seen) == {("turn-1", 0)}


def test_learn_when_what_is_believed_is_denied_then_it_is_closed_and_kept() -> None:
    book = Book()
    book.learn(said((1, nuts()), (5, nuts(denied=True))))
    assert book.believed() == []
    assert book.believed(day(3)) == ["Allergic to nuts"]
    (record,) = book.all()
    assert (record.until, record.data["polarity"], record.sources) == (day(5), "asserted", ("turn-1", "turn-5"))


def test_learn_when_nothing_of_it_is_believed_then_a_denial_is_no_fact() -> None:
    book = Book()
    book.learn(said((1, nuts(denied=True)), (2, lives("Rome")), (3, lives("Oslo", polarity="ended", denied=True))))
    assert [r.data["value"] for r in book.facts()] == ["Rome"]
    assert book.believed() == ["Lives in Rome"]


def test_learn_when_what_was_denied_is_said_before_but_comes_late_then_it_is_closed() -> None:
    book = Book()
    book.learn(said((2, nuts(denied=True), 5)))
    book.learn(said((1, nuts(), 1)))
    assert [(r.since, r.until) for r in book.all()] == [(day(1), day(5))]
    book.learn(said((3, nuts(), 9)))
    assert book.believed() == ["Allergic to nuts"]
    assert book.believed(day(6)) == []


def test_learn_when_denied_again_and_again_then_what_is_kept_is_bounded() -> None:
    book = Book()
    for n in range(60):
        book.learn(said((n, nuts(denied=True))))
    (record,) = book.all()
    assert len(record.sources) == FIRST_KEPT + LAST_KEPT
    book.learn(said((99, nuts(), -1)))
    assert [(r.since, r.until) for r in book.facts()] == [(day(-1), day(0))]


def test_records_when_the_denial_is_taken_back_then_believed_again() -> None:
    book = Book()
    book.learn(said((1, nuts()), (5, nuts(denied=True))))
    book.forget("turn-5")
    assert book.believed() == ["Allergic to nuts"]
    book.learn(said((6, nuts(denied=True)), (7, nuts(denied=True))))
    book.forget("turn-1")
    assert book.believed(day(3)) == []
    assert book.facts() == []
    book.forget("turn-6")
    book.forget("turn-7")
    assert book.all() == []


def test_contradicted_when_denied_later_then_the_earlier_is_named() -> None:
    assert SLOTS.contradicted(said((1, nuts()), (2, nuts(denied=True)))) == {("turn-1", 0)}
    assert SLOTS.contradicted(said((1, nuts(denied=True)), (2, nuts()))) == set()


_VALUES = st.sampled_from(["Paris", "Berlin", "Oslo"])
_FACTS = st.one_of(
    st.builds(lives, _VALUES),
    st.builds(lambda v: lives(v, polarity="ended"), st.sampled_from(["Paris", "Oslo", ""])),
    st.builds(lambda v: lives(v, polarity="ended", denied=True), _VALUES),
    st.builds(
        lambda p, v: Fact("user", p, v, f"{p} {v}", 0.7, "ended", denied=True),
        st.sampled_from(["likes", "dislikes"]),
        _VALUES,
    ),
    st.builds(lambda p, v: Fact("user", p, v, f"{p} {v}", 0.7), st.sampled_from(["likes", "dislikes"]), _VALUES),
    st.builds(lambda v: lives(v, valid_to=day(-10)), _VALUES),
)
_TURNS = st.lists(st.tuples(st.integers(0, 8), st.lists(_FACTS, min_size=1, max_size=3)), min_size=1, max_size=9)


def _plain(book: Book) -> list[Record]:
    """Without what tells how often the store was written."""
    return [replace(r, version=0) for r in book.all()]


@settings(max_examples=150, deadline=None)
@given(_TURNS, st.randoms(use_true_random=False))
def test_learn_when_batches_order_and_repeats_are_any_then_the_facts_are_the_same(
    turns: list[tuple[int, list[Fact]]], chance: random.Random
) -> None:
    seen = [sightings(turn(n, at), facts, day(100)) for n, (at, facts) in enumerate(turns)]
    whole = Book()
    whole.learn([one for batch in seen for one in batch])
    pieces = Book()
    order = list(seen)
    chance.shuffle(order)
    for batch in [*order, *chance.choices(order, k=3)]:
        pieces.learn(batch)
    assert _plain(pieces) == _plain(whole)
    before = whole.all()
    whole.learn([one for batch in seen for one in batch])
    assert whole.all() == before


@settings(max_examples=100, deadline=None)
@given(_TURNS)
def test_forget_when_any_turn_is_taken_back_then_as_if_it_was_never_said(turns: list[tuple[int, list[Fact]]]) -> None:
    seen = [sightings(turn(n, at), facts, day(100)) for n, (at, facts) in enumerate(turns)]
    book, without = Book(), Book()
    book.learn([one for batch in seen for one in batch])
    book.forget("turn-0")
    without.learn([one for batch in seen[1:] for one in batch])
    assert _plain(book) == _plain(without)


@settings(max_examples=100, deadline=None)
@given(_TURNS)
def test_learn_when_anything_is_said_then_at_no_time_are_two_homes_believed(
    turns: list[tuple[int, list[Fact]]],
) -> None:
    book = Book()
    for n, (at, facts) in enumerate(turns):
        book.learn(sightings(turn(n, at), facts, day(100)))
    for moment in [None, *(day(d / 2) for d in range(20))]:
        homes = [s for s in book.believed(moment) if s.startswith("Lives in")]
        assert len(homes) <= 1
        for value in ("Paris", "Berlin", "Oslo"):
            assert sum(s.endswith(f"likes {value}") for s in book.believed(moment)) <= 1
