"""What is worth remembering, said by a provider over TCP or by rules; and what counts as the same."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memories.extract import Extraction, read_answer
from memoryos_server.domain.memories.model import Suggestion
from memoryos_server.domain.memories.sameness import Sameness
from memoryos_server.tools.words import Words
from tests.providers import gateway
from tests.upstream import Die, Reply, Sleep, Upstream, completion, error_reply, json_reply

SAID = [("user", "I use Go 1.22 and hate long answers"), ("assistant", "Shall I be brief? You could try Rust.")]
NOW = datetime(2026, 5, 8, 12, 0, tzinfo=UTC)
BY_RULES = [Suggestion("by rules", "fact", 0.5)]
GOOD = {
    "memories": [
        {"content": "Uses Go 1.22", "memory_type": "fact", "importance": 0.6},
        {"content": "Keep answers short, the user hates long ones", "memory_type": "RULE"},
    ]
}


def rules(messages: Sequence[tuple[str, str]], said_at: datetime) -> list[Suggestion]:
    return BY_RULES


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(("reader",)) as running:
        yield running


async def suggested(upstream: Upstream, *, seconds: float = 20.0) -> list[Suggestion]:
    async with gateway(upstream.base_url) as llm:
        return await Extraction(rules, llm, "reader", seconds=seconds).suggest(SAID, NOW)


async def test_suggest_when_the_model_answers_then_its_memories_and_the_text_is_fenced(upstream: Upstream) -> None:
    upstream.will(json_reply(f"Here you are:\n```json\n{json.dumps(GOOD)}\n```"))
    assert await suggested(upstream) == [
        Suggestion("Uses Go 1.22", "fact", 0.6),
        Suggestion("Keep answers short, the user hates long ones", "rule", 0.5),
    ]
    (sent,) = upstream.received
    system, user = sent.json["messages"]
    assert (sent.json["model"], system["role"], user["role"]) == ("reader", "system", "user")
    assert "hate long answers" not in system["content"]
    assert json.loads(user["content"].split("\n", 1)[1]) == [{"role": r, "content": c} for r, c in SAID]


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON at all",
        "{}",
        '{"memories": {}}',
        '{"memories": ["x"]}',
        '{"memories": [{"content": "Uses Go", "memory_type": "secret"}]}',
        '{"memories": [{"content": 7, "memory_type": "fact"}]}',
        '{"memories": [{"content": "Uses Go", "memory_type": "fact", "importance": 7}]}',
        '{"memories": [{"content": "Uses Go", "memory_type": "fact", "importance": true}]}',
        json.dumps({"memories": [GOOD["memories"][0]] * 101}),
    ],
)
async def test_suggest_when_the_answer_is_no_good_then_asked_once_more_then_rules(upstream: Upstream, bad: str) -> None:
    upstream.will(json_reply(bad), json_reply(json.dumps(GOOD)), json_reply(bad), json_reply(bad))
    assert len(await suggested(upstream)) == 2
    assert await suggested(upstream) == BY_RULES
    assert len(upstream.received) == 4
    assert ["response_format" in sent.json for sent in upstream.received] == [True, False, True, False]


@pytest.mark.parametrize(
    "reply",
    [
        error_reply(500, {"message": "boom"}),
        error_reply(401, {"message": "no"}),
        error_reply(400, {"message": "no response_format here"}),
        Reply(before=(Die(),)),
        Reply(body=(b"garbage",)),
        json_reply(None),
    ],
)
async def test_suggest_when_the_provider_fails_then_rules_and_no_error(upstream: Upstream, reply: Reply) -> None:
    upstream.will(*([reply] * 12))
    assert await suggested(upstream) == BY_RULES


async def test_suggest_when_the_provider_is_slow_then_rules_in_time(upstream: Upstream) -> None:
    upstream.will(*([Reply(before=(Sleep(30),), body=(b"{}",))] * 3))
    began = time.monotonic()
    assert await suggested(upstream, seconds=0.5) == BY_RULES
    assert time.monotonic() - began < 10


async def test_suggest_when_no_model_is_named_then_rules_without_asking(upstream: Upstream) -> None:
    async with gateway(upstream.base_url) as llm:
        assert await Extraction(rules, llm, "").suggest(SAID, NOW) == BY_RULES
    assert upstream.received == []


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("Uses Go 1.22", True),
        ("Uses Go 1.23", False),  # the number was never said
        ("Writes Rust", False),  # only the assistant said so
        ("User was born in Atlantis", False),
        ("x" * 2001, False),
    ],
)
def test_answer_when_a_memory_is_not_made_of_what_the_user_said_then_left_out(content: str, kept: bool) -> None:
    body = completion(json.dumps({"memories": [{"content": content, "memory_type": "fact"}]}))
    assert [one.content for one in read_answer(body, SAID) or ()] == [content] * kept


def test_answer_when_chinese_then_held_to_the_users_characters() -> None:
    said = [("user", "我用 React 19 + TypeScript,後端是 Go")]
    listed = [{"content": c, "memory_type": "fact"} for c in ("後端使用 Go", "住在上海", "使用者使用 React 19")]
    found = read_answer(completion(json.dumps({"memories": listed})), said) or ()
    assert [one.content for one in found] == ["後端使用 Go", "使用者使用 React 19"]


SAME = [
    ("I live in Lisbon", "Lives in Lisbon", None),
    ("The user uses Python 3.12", "I use Python 3.12", None),
    ("Has two parrots", "I have 2 parrots", None),
    ("I don't eat meat", "User does not eat meat", None),
    ("We deploy on Fridays", "Deployments happen on Fridays", 0.89),
    ("User prefers dark mode", "The user likes dark mode", 0.92),
    ("使用者偏好繁體中文回覆", "用户偏好繁体中文回复", None),
    ("我住在杭州", "我住在杭州。", None),
    ("我養了一隻貓", "有一隻貓", 0.9),
    ("Uses Go for the backend", "後端使用 Go", 0.9),
]
DIFFERENT = [
    ("I live in Lisbon", "I live in Madrid", 0.9),
    ("Has two parrots", "Has three parrots", 0.99),
    ("Uses Python 3.12", "Uses Python 3.11", 0.99),
    ("I like coffee", "I don't like coffee", 0.95),
    ("I don't like tea but like coffee", "I like tea but don't like coffee", 0.97),
    ("User prefers dark mode", "User prefers light mode", 0.95),
    ("My brother lives in Rome", "My sister lives in Rome", 0.95),
    ("Meeting on Monday", "Meeting on Tuesday", 0.95),
    ("Ann manages Ben", "Ben manages Ann", 0.97),
    ("Prefers tabs over spaces", "Prefers spaces over tabs", 0.98),
    ("Reply in French", "Reply in German", 0.95),
    ("likes tea", "likes coffee", 0.7),
    ("likes tea", "plays the harp", 0.9),
    ("Uses Vim for editing", "Uses Emacs for editing", 0.8),
    ("使用者偏好繁體中文回覆,技術術語保留英文", "使用者偏好簡體中文回覆,技術術語保留英文", None),
    ("我喜歡喝茶", "我不喜歡喝茶", 0.95),
    ("我養了三隻貓", "我養了兩隻貓", 0.99),
    ("我用 React", "我用 Vue", 0.95),
    ("Uses Go for the backend", "後端使用 Rust", 0.95),
]


@pytest.mark.parametrize(("a", "b", "cosine"), SAME)
def test_same_when_both_say_it_then_true_either_way_round(a: str, b: str, cosine: float | None) -> None:
    words = Words()
    sameness = Sameness(words.fold, words.stem)
    assert sameness.same(sameness.traits(a), sameness.traits(b), cosine)
    assert sameness.same(sameness.traits(b), sameness.traits(a), cosine)


@pytest.mark.parametrize(("a", "b", "cosine"), DIFFERENT)
def test_same_when_a_number_name_negation_or_choice_differs_then_false(a: str, b: str, cosine: float | None) -> None:
    words = Words()
    sameness = Sameness(words.fold, words.stem)
    assert not sameness.same(sameness.traits(a), sameness.traits(b), cosine)
    assert not sameness.same(sameness.traits(b), sameness.traits(a), cosine)


def test_traits_when_the_text_is_as_long_as_may_be_then_in_time() -> None:
    words = Words()
    sameness = Sameness(words.fold, words.stem)
    for unit in ("Ann does not like tea. ", "我不喜歡喝茶", "Ａ1.", "'\"'\"", "not "):
        text = (unit * (100_000 // len(unit) + 1))[:100_000]
        began = time.monotonic()
        assert sameness.same(sameness.traits(text), sameness.traits(text), None)
        assert time.monotonic() - began < 10, unit
