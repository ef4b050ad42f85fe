from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.ports import Candidate, Turn
from memoryos_server.domain.recall.scoring import COSINE_FLOOR, Scored, Weights, rank

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def candidate(
    event: str,
    *,
    lexical: float = 0.0,
    cosine: float = 0.0,
    session: str = "s",
    name: str = "",
    text: str = "said",
    minutes: float = 0,
) -> Candidate:
    scores = {leg: s for leg, s in (("lexical", lexical), ("minilm", cosine)) if s}
    turn = Turn(f"id-{event}", event, session, "user", name, text, NOON + timedelta(minutes=minutes))
    return Candidate(turn, scores)


def ranked(
    candidates: Sequence[Candidate],
    named: Callable[[str], bool] = lambda name: False,
    quoted: Callable[[str], bool] = lambda text: False,
) -> list[Scored]:
    return rank(candidates, Weights(), named=named, quoted=quoted)


def events(found: Sequence[Scored]) -> list[str]:
    return [one.turn.event_id for one in found]


def test_rank_when_a_turn_follows_the_matching_question_then_lifts_the_answer() -> None:
    found = ranked(
        [
            candidate("1", lexical=9, text="Where did you meet?"),
            candidate("2", cosine=0.1, text="In Paris, in the rain."),
            candidate("3", lexical=2, text="We meet often.", session="other"),
        ]
    )
    answer = next(one for one in found if one.turn.event_id == "2")
    assert dict(answer.parts)["answer"] > 0
    assert events(found).index("2") < events(found).index("3")


def test_rank_when_neighbours_are_of_another_session_then_they_do_not_count() -> None:
    found = ranked([candidate("1", lexical=9, session="a"), candidate("2", lexical=1, session="b")])
    assert all("neighbours" not in dict(one.parts) for one in found)


def test_rank_when_turns_of_a_session_are_hours_apart_then_they_are_no_neighbours() -> None:
    found = ranked([candidate("1", lexical=9), candidate("2", lexical=1, minutes=180)])
    assert all("neighbours" not in dict(one.parts) for one in found)


def test_rank_when_ids_of_one_instant_count_up_then_neighbours_follow_the_count() -> None:
    found = ranked([candidate(f"m-{n}", lexical=9 if n == 10 else 0.01) for n in range(1, 21)])
    close = {e for e in events(found) if dict(found[events(found).index(e)].parts).get("neighbours", 0) > 0.1}
    assert {"m-8", "m-9", "m-11", "m-12"} <= close
    assert not {"m-1", "m-2", "m-20", "m-7", "m-13"} & close


def test_rank_when_nothing_has_to_do_with_the_question_then_abstains() -> None:
    assert ranked([candidate(str(n), cosine=COSINE_FLOOR - 0.01, session=str(n)) for n in range(5)]) == []


def test_rank_when_there_is_nothing_then_finds_nothing() -> None:
    assert ranked([]) == []


def test_rank_when_the_question_names_the_speaker_then_prefers_him() -> None:
    pair = [candidate("1", lexical=5, name="Ann", session="a"), candidate("2", lexical=5, name="Bob", session="b")]
    assert events(ranked(pair, named=lambda name: name == "Ann"))[0] == "1"
    assert events(ranked(pair, named=lambda name: name == "Bob"))[0] == "2"


def test_rank_when_equal_then_the_newer_comes_first() -> None:
    pair = [candidate("1", lexical=5, session="a"), candidate("2", lexical=5, session="b", minutes=60)]
    assert events(ranked(pair)) == ["2", "1"]


def test_rank_when_a_turn_has_the_words_themselves_then_it_is_first() -> None:
    found = ranked(
        [
            candidate("1", lexical=9, session="a", text="We talked about the tea of Kyoto and more"),
            candidate("2", lexical=8, session="b", text="the tea of Kyoto?"),
        ],
        quoted=lambda text: text == "the tea of Kyoto?",
    )
    assert events(found)[0] == "2"


def test_rank_when_a_turn_only_asks_then_ranks_below_one_that_tells() -> None:
    pair = [candidate("1", lexical=5, session="a", text="Tea?"), candidate("2", lexical=5, session="b", text="Tea.")]
    assert events(ranked(pair)) == ["2", "1"]


def _candidates() -> st.SearchStrategy[list[Candidate]]:
    one = st.builds(
        candidate,
        st.integers(0, 10**6).map(str),
        lexical=st.floats(0, 40),
        cosine=st.floats(0, 1),
        session=st.sampled_from(["", "a", "b"]),
        name=st.sampled_from(["", "Ann", "Bob"]),
        text=st.sampled_from(["So?", "So.", "你好吗？", "x\n[image: y]"]),
        minutes=st.integers(0, 600),
    )
    return st.lists(one, max_size=30, unique_by=lambda c: c.turn.id)


@given(_candidates(), st.randoms())
def test_rank_when_candidates_come_in_any_order_then_gives_the_same(
    found: list[Candidate], dice: random.Random
) -> None:
    shuffled = list(found)
    dice.shuffle(shuffled)
    assert ranked(shuffled) == ranked(found)


@given(_candidates())
def test_rank_when_explained_then_parts_sum_to_raw_and_order_follows_raw(found: list[Candidate]) -> None:
    scored = ranked(found, named=lambda name: name == "Ann")
    assert [one.raw for one in scored] == sorted((one.raw for one in scored), reverse=True)
    for one in scored:
        assert sum(value for _, value in one.parts) == pytest.approx(one.raw, abs=1e-12)


def test_rank_when_there_are_400_candidates_then_takes_milliseconds() -> None:
    dice = random.Random(1)  # noqa: S311  # no secret
    many = [
        candidate(f"{n}", lexical=dice.random() * 20, cosine=dice.random(), session=str(n // 20), name="Ann")
        for n in range(400)
    ]
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        ranked(many, named=lambda name: True)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1  # some 3 ms; the bound forgives a busy machine
