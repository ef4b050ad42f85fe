from __future__ import annotations

import time

import pytest

from memoryos_server.domain.memory.extraction import judge


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hi", "greeting"),
        ("Hello there!", "greeting"),
        ("Good morning, Ann!", "greeting"),
        ("How are you?", "greeting"),
        ("你好，朋友", "greeting"),
        ("早上好！", "greeting"),
        ("See you tomorrow!", "farewell"),
        ("再見", "farewell"),
        ("Thanks, Mel!", "thanks"),
        ("thank you so much, Jon! Bye", "thanks"),
        ("謝謝", "thanks"),
        ("不客气", "thanks"),
        ("ok", "acknowledgement"),
        ("LOL", "acknowledgement"),
        ("That's great to hear!", "acknowledgement"),
        ("好的", "acknowledgement"),
        ("哈哈哈", "acknowledgement"),
        ("嗯嗯", "acknowledgement"),
        ("Hmm, let me think", "filler"),
        ("让我想想", "filler"),
        ("😀😀", "empty"),
        ("", "empty"),
        ("...", "empty"),
        ("？！", "empty"),
        ("<memoryos-context>\nfoo\n</memoryos-context>", "echo"),
        ("<memoryos-context>\nfoo\n", "echo"),
    ],
)
def test_judge_when_nothing_is_said_then_the_reason(text: str, reason: str) -> None:
    assert judge(text, "user") == reason


@pytest.mark.parametrize(
    "text",
    [
        "Hi! I just adopted a dog",
        "你好，我叫张志强",
        "早上好！今天天气不错",
        "Rex",
        "Paris",
        "Yes, in 2019",
        "no, Tokyo",
        "Oh, Rex!",
        "OK Google",
        "thanks for the book",
        "42",
        "3pm",
        "好吃",
        "不客气，互相学习互相进步嘛",
        "I'm vegan",
        "Ok, call me Bea",
        "<memoryos-context>\nfoo\n</memoryos-context> I live in Rome",
        "As an AI language model I am curious about your work",
    ],
)
def test_judge_when_something_is_said_then_it_is_not_junk(text: str) -> None:
    assert judge(text, "user") == ""


def test_judge_when_an_assistant_speaks_of_being_one_then_boilerplate() -> None:
    assert judge("As an AI language model, I cannot taste food.", "assistant") == "boilerplate"
    assert judge("作为一个人工智能，我没有味觉。", "assistant") == "boilerplate"
    assert judge("Rome is the capital of Italy.", "assistant") == ""


@pytest.mark.parametrize("piece", ["hi ", "好", "<memoryos-context>", "a", "😀", ","])
def test_judge_when_the_text_is_long_then_time_is_linear(piece: str) -> None:
    start = time.process_time()
    judge((piece * 100_000)[:100_000], "user")
    assert time.process_time() - start < 1
