from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memoryos_server.domain.ports import Candidate, Candidates
from memoryos_server.domain.recall.analysis import Question
from memoryos_server.domain.recall.features import COSINE_FLOOR, FEATURES, GROUP, LEXICAL, measure
from memoryos_server.domain.recall.hints import HINTS
from memoryos_server.domain.recall.scoring import WEIGHTS, Calibration, Scored, Weights, ordered, parts, rank

QUESTION = Question({"a": 1.0, "b": 1.0}, "a b", ({"a": 1.0}, {"b": 1.0}))
DENSE = ("minilm",)


def candidate(
    seq: int,
    *,
    lexical: float = 0.0,
    cosine: float = 0.0,
    groups: Sequence[float] = (),
    session: str = "s",
    named: bool = False,
    at: float = 0.0,
    **hints: float,
) -> Candidate:
    scores = {leg: s for leg, s in ((LEXICAL, lexical), ("minilm", cosine)) if s}
    scores |= {f"{GROUP}{n}": s for n, s in enumerate(groups) if s}
    return Candidate(str(UUID(int=seq)), seq, session, at, tuple(hints.get(h, 0.0) for h in HINTS), named, scores)


def ranked(candidates: Sequence[Candidate], question: Question = QUESTION, most: int | None = None) -> list[Scored]:
    return rank(measure(Candidates.of(candidates), question, DENSE), Weights(), most)


def measured(candidates: Sequence[Candidate], question: Question = QUESTION) -> dict[int, Scored]:
    return {one.seq: one for one in ranked(candidates, question)}


def value(one: Scored, feature: str) -> float:
    return one.values[FEATURES.index(feature)]


def order(candidates: Sequence[Candidate]) -> list[int]:
    return [s.seq for s in ranked(candidates)]


def test_weights_when_shipped_then_each_feature_has_one_and_nothing_else_has() -> None:
    assert WEIGHTS.keys() == set(FEATURES)


def test_window_when_neighbours_have_the_other_half_of_the_words_then_reaches_further_than_a_repetition() -> None:
    halves = [
        candidate(1, lexical=4, groups=(4, 0), session="x"),
        candidate(2, lexical=4, groups=(0, 4), session="x"),
        candidate(11, lexical=4, groups=(4, 0), session="y"),
        candidate(12, lexical=4, groups=(4, 0), session="y"),
    ]
    found = measured(halves)
    assert value(found[1], "window") > value(found[11], "window")
    assert found[1].reach > found[11].reach == pytest.approx(0.5)


def test_reach_when_some_words_were_never_said_then_they_count_as_rare_ones() -> None:
    found = measured([candidate(1, lexical=4, groups=(4, 0))])
    assert found[1].reach == pytest.approx(0.5)


def test_window_when_a_group_was_cut_from_its_leg_then_the_rest_of_all_words_stands_for_it() -> None:
    found = measured([candidate(1, lexical=5, groups=(5, 0)), candidate(9, lexical=5, groups=(2, 0))])
    assert value(found[9], "window") == pytest.approx(value(found[1], "window"))


def test_measure_when_a_turn_follows_the_matching_question_then_has_its_evidence() -> None:
    found = measured([candidate(1, lexical=9, asks=1.0), candidate(2, cosine=0.1)])
    assert value(found[2], "answer") == 1.0
    assert value(found[1], "answer") == 0.0


@pytest.mark.parametrize(
    "other",
    [
        candidate(2, lexical=1, session="b"),
        candidate(4, lexical=1),
        candidate(0, lexical=1),
    ],
)
def test_measure_when_turns_are_of_other_sessions_or_places_then_they_are_no_neighbours(other: Candidate) -> None:
    found = measured([candidate(1, lexical=9, cosine=0.9), other])
    assert all(value(one, "around") == value(one, "before") == 0.0 for one in found.values())


def test_measure_when_turns_without_a_session_are_hours_apart_then_they_are_no_neighbours() -> None:
    near = measured([candidate(1, cosine=0.9, session=""), candidate(2, cosine=0.5, session="", at=60.0)])
    apart = measured([candidate(1, cosine=0.9, session=""), candidate(2, cosine=0.5, session="", at=7200.0)])
    assert value(near[2], "around") == 1.0
    assert value(apart[2], "around") == 0.0


def test_measure_when_only_a_group_leg_found_a_turn_then_it_is_no_candidate() -> None:
    assert measured([candidate(1, groups=(3, 0))]) == {}


def test_measure_when_nothing_has_to_do_with_the_question_then_abstains() -> None:
    assert measured([candidate(n, cosine=COSINE_FLOOR - 0.01, session=str(n)) for n in range(5)]) == {}


def test_measure_when_a_neighbour_is_close_then_keeps_what_is_not() -> None:
    assert measured([candidate(1, cosine=0.8), candidate(2, cosine=0.05)]).keys() == {1, 2}


def test_measure_when_hints_are_of_another_version_then_goes_on_without() -> None:
    old = Candidate(str(UUID(int=1)), 1, "s", 0.0, (1.0,), False, {LEXICAL: 2.0})
    assert value(measured([old])[1], "asks") == 0.0


def test_time_hint_when_the_question_asks_for_something_else_then_does_not_count() -> None:
    when = Question({"a": 1.0}, "when a", when=True)
    said = [candidate(1, lexical=2, time=1.0)]
    assert value(measured(said, when)[1], "time") == 1.0
    assert value(measured(said)[1], "time") == 0.0


def test_rank_when_the_question_names_the_speaker_then_prefers_him() -> None:
    assert order([candidate(1, lexical=5, session="a", named=True), candidate(9, lexical=5, session="b")]) == [1, 9]


def test_rank_when_a_turn_only_asks_then_ranks_below_one_that_tells() -> None:
    assert order([candidate(1, lexical=5, session="a"), candidate(9, lexical=5, session="b", asks=1.0)]) == [1, 9]


def test_rank_when_equal_then_the_newer_comes_first() -> None:
    pair = [candidate(1, lexical=5, session="a"), candidate(9, lexical=5, session="b", at=60.0)]
    assert order(pair) == [9, 1]


def test_rank_when_there_is_nothing_then_finds_nothing() -> None:
    assert order([]) == []


def _candidates() -> st.SearchStrategy[list[Candidate]]:
    one = st.builds(
        candidate,
        st.integers(1, 60),
        lexical=st.floats(0, 40),
        cosine=st.floats(-1, 1),
        groups=st.tuples(st.floats(0, 20), st.floats(0, 20)),
        session=st.sampled_from(["", "a", "b"]),
        named=st.booleans(),
        at=st.floats(0, 1e5),
        asks=st.sampled_from([0.0, 1.0]),
        length=st.floats(0, 6),
        assistant=st.sampled_from([0.0, 1.0]),
    )
    return st.lists(one, max_size=30, unique_by=lambda c: c.id)


@given(_candidates(), st.randoms())
def test_rank_when_candidates_come_in_any_order_then_gives_the_same(
    found: list[Candidate], dice: random.Random
) -> None:
    shuffled = list(found)
    dice.shuffle(shuffled)
    assert ranked(shuffled) == ranked(found)


@given(_candidates())
def test_rank_when_explained_then_parts_sum_to_raw_and_order_follows_raw(found: list[Candidate]) -> None:
    scored = ranked(found)
    assert [one.raw for one in scored] == sorted((one.raw for one in scored), reverse=True)
    for one in [*scored, *(s.adding("quoted", 4.0) for s in scored)]:
        assert sum(parts(one, Weights()).values()) == pytest.approx(one.raw, abs=1e-9)


@given(_candidates(), st.integers(1, 40))
def test_rank_when_only_the_best_are_wanted_then_they_are_the_first_of_all(found: list[Candidate], most: int) -> None:
    assert ranked(found, most=most) == ranked(found)[:most]


@given(_candidates())
@example([candidate(1, lexical=1.0, groups=(0.0, 2.225073858507203e-309))])
def test_measure_when_given_anything_then_shares_stay_within_bounds(found: list[Candidate]) -> None:
    for one in ranked(found):
        assert 0 <= one.reach <= 1
        for feature in ("lexical", "dense", "window", "before", "answer", "session", "session_dense"):
            assert 0 <= value(one, feature) <= 1 + 1e-9


@given(_candidates(), st.floats(0, 5), st.floats(0, 5))
def test_calibration_when_raw_lags_then_scores_fall_and_stay_probabilities(
    found: list[Candidate], one: float, more: float
) -> None:
    calibration = Calibration()
    best = calibration.best(ranked(found))
    first, second = calibration.score(best, one), calibration.score(best, one + more)
    assert 0 <= second <= first <= 1


def test_calibration_when_words_and_meaning_say_more_then_is_surer() -> None:
    odds = Calibration().odds
    assert odds(1.0, 0.6) > odds(0.5, 0.6) > odds(0.5, 0.3)
    assert odds(1.0, 0.0) > odds(0.3, 0.0)


def test_calibration_when_there_is_nothing_then_scores_nothing() -> None:
    assert Calibration().best([]) == -math.inf
    assert Calibration().score(-math.inf, 0.0) < 1e-100


def test_ordered_when_a_part_is_added_then_the_order_follows() -> None:
    first, second = ranked([candidate(1, lexical=5), candidate(9, lexical=4)])
    again: list[Scored] = ordered([first.adding("echo", -50.0), second])
    assert [s.seq for s in again] == [9, 1]


def test_rank_when_there_are_400_candidates_then_takes_milliseconds() -> None:
    dice = random.Random(1)  # noqa: S311  # no secret
    many = Candidates.of(
        candidate(n, lexical=dice.random() * 20, cosine=dice.random(), groups=(3, 4), session=str(n // 20))
        for n in range(1, 401)
    )
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        rank(measure(many, QUESTION, DENSE), Weights())
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1  # some 0.4 ms; the bound forgives a busy machine
