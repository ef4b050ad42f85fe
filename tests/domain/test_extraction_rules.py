from __future__ import annotations

from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memory.extraction import Candidate, extract, extract_memories
from memoryos_server.tools.words import Words

FOLD = Words().fold
SAID_AT = datetime(2024, 5, 15, 10, tzinfo=UTC)  # a Wednesday


@pytest.mark.parametrize(
    "text",
    [
        "always answer in Traditional Chinese",
        "Please always use metric units",
        "Never use emojis",
        "Don't use emojis",
        "From now on, reply in bullet points",
        "From now on, call me Captain",
        "Keep your answers short",
        "I prefer concise answers",
        "Please respond in French",
        "Answer in English",
        "请用繁体中文回复",
        "請用繁體中文回覆",
        "以后不要用表情符号",
        "记住，以后都用英文回答",
        "始终使用公制单位",
        "回答请简洁一点",
        "不要用表情",
        "以后叫我老王",
        "使用者偏好繁體中文回覆,技術術語保留英文",
    ],
)
def test_extract_when_the_assistant_is_told_how_then_a_rule_of_these_words(text: str) -> None:
    said = extract(text, speaker="", role="user", said_at=SAID_AT, fold=FOLD)
    assert [rule.content for rule in said.rules] == [text]
    assert all(0 < rule.importance <= 1 for rule in said.rules)


@pytest.mark.parametrize(
    "text",
    [
        "Should I always answer in French?",
        "Call me back later",
        "I always answer the phone",
        "Translate this sentence into French",
        "She never uses emojis",
        "Write a poem about Rome",
        "什么是繁体中文？",
        "我用中文回复了他的邮件",
        "把这段翻译成英文",
        "他不要用表情符号",
        "I like tea",
    ],
)
def test_extract_when_nothing_lasting_is_asked_then_no_rule(text: str) -> None:
    assert extract(text, speaker="", role="user", said_at=SAID_AT, fold=FOLD).rules == ()


def test_extract_when_instructions_follow_one_another_then_each_is_a_rule() -> None:
    def told(text: str) -> list[str]:
        said = extract(text, speaker="", role="user", said_at=SAID_AT, fold=FOLD)
        return [rule.content for rule in said.rules]

    assert told("Don't use emojis. Use metric units. Keep it short.") == [
        "Don't use emojis",
        "Use metric units",
        "Keep it short",
    ]
    assert told("Use metric units.") == ["Use metric units"]
    assert told("I don't use emojis. Keep it short.") == []
    assert told("Don't use emojis. I like tea. Keep the change.") == ["Don't use emojis"]


def memories(*messages: tuple[str, str]) -> list[Candidate]:
    return extract_memories(messages, said_at=SAID_AT, fold=FOLD)


def test_extract_memories_when_a_chat_names_tools_then_they_survive_whole() -> None:
    found = memories(("user", "我用 React 19 + TypeScript,後端是 Go"), ("assistant", "了解,之後範例會用這個 stack"))
    assert [(m.content, m.memory_type) for m in found] == [("使用 React 19 + TypeScript", "fact"), ("使用 Go", "fact")]


def test_extract_memories_when_a_text_speaks_of_the_user_then_facts() -> None:
    found = memories(("user", "使用者使用 Python 3.12,偏好 async 模式"))
    assert [m.content for m in found] == ["使用 Python 3.12", "喜欢 async 模式"]


def test_extract_memories_when_rules_facts_and_plans_then_each_its_type() -> None:
    found = memories(
        ("user", "Always answer in French. I'm allergic to nuts. I'm planning to visit Japan."),
        ("user", "I no longer live in Rome. I'm allergic to nuts."),
    )
    assert [(m.content, m.memory_type) for m in found] == [
        ("Always answer in French", "rule"),
        ("Is allergic to nuts", "fact"),
        ("Plans: visit Japan", "context"),
    ]
    assert all(0 < m.importance <= 1 for m in found)
