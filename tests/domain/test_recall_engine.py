"""The engine over a real vector process, by words alone: what a machine without the model does."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.recall.engine import EngineMemory, subject_of
from bench.recall.sets import Line
from bench.recall.systems import in_process
from memoryos_server.domain.core.text import turn_tokens
from memoryos_server.domain.recall.engine import RecallEngine

START = datetime(2024, 3, 4, 9, tzinfo=UTC)
SAID = [
    ("Ann", "I adopted a puppy yesterday, his name is Rufus."),
    ("Bob", "How lovely! What breed is he?"),
    ("Ann", "A border collie with one blue eye."),
    ("Bob", "My sister Clara plays the cello in an orchestra in Lisbon."),
    ("Ann", "Mein Zug kommt um 7:45 an."),
    ("Bob", "我下周二要去上海出差，见一位老客户。"),
    ("Ann", "Remember the invoice INV-2024-0093, it is due in April."),
]


def line(n: int, name: str, text: str, *, user_day: int = 0) -> Line:
    return Line(f"e-{n}", f"s-{user_day}", "user", name, text, START + timedelta(days=user_day, minutes=n))


@pytest.fixture
async def memory() -> AsyncIterator[EngineMemory]:
    async with in_process(Path("unused"), model="none") as made:
        await made.add("ann", [line(n, name, text) for n, (name, text) in enumerate(SAID)])
        yield made


@pytest.fixture
def engine(memory: EngineMemory) -> RecallEngine:
    return memory.engine


async def test_forget_all_when_called_then_no_question_and_no_text_is_kept(engine: RecallEngine) -> None:
    await engine.recall(subject_of("ann"), "What is the name of Ann's puppy?", 3)
    engine.closeness("Which puppy?", "His name is Rufus.", {})
    kept = (engine._question, engine._terms_of)
    assert [one.cache_info().currsize for one in kept] == [2, 1]
    engine.forget_all()
    assert [one.cache_info().currsize for one in kept] == [0, 0]


@pytest.mark.parametrize(
    ("question", "event"),
    [
        ("What is the name of Ann's puppy?", "e-0"),
        ("Which instrument does Clara play?", "e-3"),
        ("我什么时候去上海？", "e-5"),
        ("我什麼時候去上海出差？", "e-5"),
        ("when is INV-2024-0093 due?", "e-6"),
    ],
)
async def test_recall_when_asked_then_finds_the_turn_first(engine: RecallEngine, question: str, event: str) -> None:
    found = await engine.recall(subject_of("ann"), question, 3)
    assert found.ranked[0].turn.event_id == event


async def test_recall_when_the_turn_is_quoted_then_scores_near_one(engine: RecallEngine) -> None:
    found = await engine.recall(subject_of("ann"), SAID[3][1], 5)
    assert found.ranked[0].turn.event_id == "e-3"
    assert found.ranked[0].score > 0.95
    assert all(0 <= one.score <= 1 for one in found.ranked)


async def test_recall_when_nothing_matches_then_is_empty(engine: RecallEngine) -> None:
    assert (await engine.recall(subject_of("ann"), "quantum chromodynamics", 10)).ranked == ()


async def test_recall_when_little_matches_then_scores_low(engine: RecallEngine) -> None:
    found = await engine.recall(subject_of("ann"), "Which orchestra conductor retired from opera after Vienna?", 10)
    assert found.ranked
    assert found.ranked[0].score < 0.4


async def test_recall_when_min_score_is_given_then_leaves_out_what_is_below(engine: RecallEngine) -> None:
    everything = (await engine.recall(subject_of("ann"), "the puppy Rufus of Ann", 10)).ranked
    bound = everything[0].score - 1e-6
    assert [one.turn.event_id for one in everything if one.score >= bound] == [
        one.turn.event_id
        for one in (await engine.recall(subject_of("ann"), "the puppy Rufus of Ann", 10, min_score=bound)).ranked
    ]
    assert len(everything) > 1


async def test_recall_when_a_budget_is_given_then_keeps_whole_turns_within_it(engine: RecallEngine) -> None:
    everything = (await engine.recall(subject_of("ann"), "Ann Bob", 10)).ranked
    budget = sum(turn_tokens(one.turn.name, one.turn.content) for one in everything[:2])
    packed = (await engine.recall(subject_of("ann"), "Ann Bob", 10, max_tokens=budget)).ranked
    assert packed[0].turn == everything[0].turn
    assert [one.turn.id for one in packed] == [
        e.turn.id for e in everything if e.turn.id in {p.turn.id for p in packed}
    ]
    assert sum(turn_tokens(one.turn.name, one.turn.content) for one in packed) <= budget
    assert all(one.turn.content in {text for _, text in SAID} for one in packed)
    assert (await engine.recall(subject_of("ann"), "Ann Bob", 10, max_tokens=1)).ranked == []


async def test_recall_when_as_of_is_given_then_knows_nothing_later(engine: RecallEngine) -> None:
    found = await engine.recall(subject_of("ann"), "Clara cello puppy", 10, as_of=START + timedelta(minutes=2))
    assert {one.turn.event_id for one in found.ranked} <= {"e-0", "e-1", "e-2"}
    assert found.ranked[0].turn.event_id == "e-0"


async def test_recall_when_explained_then_parts_sum_to_raw_and_scores_follow_it(engine: RecallEngine) -> None:
    found = await engine.recall(subject_of("ann"), "Which instrument does Clara play?", 5, explain=True)
    for one in found.ranked:
        assert sum(one.parts.values()) == pytest.approx(one.raw)
    best = found.ranked[0]
    lag = float(found.calibration.partition("exp(")[2].partition(" *")[0])
    for one in found.ranked:
        odds = math.log(one.score / (1 - one.score)) - math.log(best.score / (1 - best.score))
        assert odds == pytest.approx(lag * (one.raw - best.raw))
    assert "raw" in found.calibration


async def test_recall_when_not_explained_then_says_nothing_of_parts(engine: RecallEngine) -> None:
    found = await engine.recall(subject_of("ann"), "Which instrument does Clara play?", 5)
    assert (found.ranked[0].parts, found.ranked[0].raw, found.calibration) == ({}, 0.0, "")


async def test_recall_when_asked_for_another_subject_then_finds_none_of_ann(memory: EngineMemory) -> None:
    await memory.add("eve", [line(0, "Eve", "A puppy of mine is called Max.")])
    found = await memory.engine.recall(subject_of("eve"), "What is the name of the puppy?", 10)
    assert [one.turn.content for one in found.ranked] == ["A puppy of mine is called Max."]


async def test_recall_when_asked_twice_then_answers_the_same(engine: RecallEngine) -> None:
    first = await engine.recall(subject_of("ann"), "What breed is Rufus?", 10, explain=True)
    assert await engine.recall(subject_of("ann"), "What breed is Rufus?", 10, explain=True) == first


async def texts_for(memory: EngineMemory, said: list[str], question: str) -> list[str]:
    await memory.add("ben", [line(n, "", text, user_day=n) for n, text in enumerate(said)])
    found = await memory.engine.recall(subject_of("ben"), question, 10)
    return [one.turn.content for one in found.ranked]


async def test_recall_when_the_question_was_asked_before_then_the_fact_comes_first(memory: EngineMemory) -> None:
    said = ["I take my coffee black, without sugar.", *["How do I take my coffee?"] * 3]
    assert (await texts_for(memory, said, "How do I take my coffee?"))[0] == said[0]


@pytest.mark.parametrize(("question", "answer"), [("茶", "我喜欢喝绿茶"), ("我开什么车？", "我的车是蓝色的本田")])
async def test_recall_when_chinese_words_have_one_character_then_they_are_found(
    memory: EngineMemory, question: str, answer: str
) -> None:
    assert (await texts_for(memory, ["我喜欢喝绿茶", "我的车是蓝色的本田", "今天天气不错"], question))[0] == answer


async def test_recall_when_the_budget_is_large_then_gives_everything_that_is_ranked(memory: EngineMemory) -> None:
    many = [line(n, "Ann", f"My dog number {n} likes walks.") for n in range(150)]
    await memory.add("dot", many)
    found = await memory.engine.recall(subject_of("dot"), "dog walks", 1000, max_tokens=1_000_000)
    assert len(found.ranked) == 150
    assert len({one.turn.id for one in found.ranked}) == 150


async def test_recall_when_a_budget_is_small_then_reads_no_further_than_it_lasts(memory: EngineMemory) -> None:
    many = [line(n, "Ann", f"My dog number {n} likes walks.") for n in range(150)]
    await memory.add("eli", many)
    found = await memory.engine.recall(subject_of("eli"), "dog walks", 1000, max_tokens=turn_tokens_of(many[0]) * 3)
    assert 2 <= len(found.ranked) <= 3


def turn_tokens_of(one: Line) -> int:
    return turn_tokens(one.name, one.text)


async def test_closeness_when_a_record_says_the_words_then_is_surer_than_for_one_that_does_not(
    engine: RecallEngine,
) -> None:
    assert engine.closeness("green tea", "Ann likes green tea", {"lexical": 3.0}) == pytest.approx(1.0)
    half = engine.closeness("green tea", "Ann likes tea", {"lexical": 1.0})
    assert 0.4 < half < engine.closeness("green tea", "Ann likes tea", {"lexical": 1.0, "minilm": 0.6}) < 1.0
    assert engine.closeness("green tea", "Bob runs", {}) == 0.0


async def test_terms_and_vectors_when_given_texts_then_answers_in_order_and_meets_the_query(
    engine: RecallEngine,
) -> None:
    made = await engine.terms_and_vectors(["Ann went hiking", "绿茶"])
    terms, dense = await engine.query("Where does Ann hike?")
    assert (len(made), dense) == (2, {})
    assert set(terms) & set(made[0][0]) == {"ann", "hike"}
    assert not set(terms) & set(made[1][0])
