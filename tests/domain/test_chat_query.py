"""What memory is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memoryos_server.domain.chat.query import BEFORE_CHARS, query_of, refers_back
from memoryos_server.domain.chat.request import parse_body


def asked(*contents: Any, roles: str = "uauauauau") -> str:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": content} for role, content in zip(roles, contents, strict=False)]
    return query_of(parse_body(json.dumps({"model": "m", "messages": messages}), stream=False))


@pytest.mark.parametrize(
    ("question", "back"),
    [
        ("Where does she live?", True),
        ("And in winter?", True),
        ("What about Porto?", True),
        ("Why?", True),
        ("那她住在哪里？", True),
        ("他喜欢什么？", True),
        ("上海呢？", True),
        ("What is my cat called?", False),
        ("Where do I live?", False),
        ("我的猫叫什么名字？", False),
        ("It says that the ferry to the islands leaves at nine from the old pier, right?", False),
        ("", False),
    ],
)
def test_question_when_short_and_pointing_back_then_it_needs_what_was_said_before(question: str, back: bool) -> None:
    assert refers_back(question) == back


def test_query_when_the_question_points_back_then_the_turns_before_stand_behind_it() -> None:
    assert asked("Hello", "Hi", "Who is my sister?", "Your sister is Anna.", "Where does she live?") == (
        "Where does she live?\nWho is my sister?\nYour sister is Anna."
    )


def test_query_when_the_question_stands_by_itself_then_it_alone() -> None:
    assert asked("Who is my sister?", "Your sister is Anna.", " What is my cat called? ") == "What is my cat called?"


def test_query_when_turns_before_are_long_or_no_text_then_their_beginning_or_none() -> None:
    assert asked("Why?") == "Why?"
    assert asked(None, "x" * 1000, "Why?", roles="tau") == f"Why?\n{'x' * BEFORE_CHARS}"
    assert asked("s", "Who?", "Why?", roles="suu") == "Why?\nWho?"
