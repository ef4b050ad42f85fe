"""Summaries and tags by rules: what is quoted, what is not, and how long it may get."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryos_server.domain.memory.summary import MAX_TAGS, MAX_WORDS, cut, length, sentences, summarise, tags
from memoryos_server.domain.memory.topics import MAX_TURNS, Said, pieces, topics
from memoryos_server.domain.ports import Turn
from tests.domain.derived_support import ANALYSIS, START, WORDS

DOG = [
    "I adopted a dog from the shelter in Lyon last week, her name is Biscuit.",
    "> Congratulations! What breed is Biscuit?",
    "She is a border collie mix, about two years old.",
    "> Border collies need a lot of exercise. Do you have a garden?",
    "No garden, but there is a park two streets away where the dog can run.",
    "> That sounds perfect for a border collie.",
]
TRIP = [
    "By the way, I need to renew my passport before the trip to Japan in October.",
    "> Passport renewal can take six weeks, so start early.",
    "The passport appointment at the town hall is on 12 June.",
    "> Good. Japan requires no visa for stays below 90 days.",
    "I booked the flight to Japan with ANA for 820 euros.",
    "> Great price for a flight to Japan.",
]
DOG_ZH = [
    "我上周在里昂的收容所领养了一只狗,名字叫饼干。",
    "> 恭喜!饼干是什么品种?",
    "它是边境牧羊犬的混血,大概两岁。",
    "> 边境牧羊犬需要很多运动,你有花园吗?",
]
DOG_ZH += ["没有花园,不过两条街外有个公园,狗可以在那里跑。"]


def said(lines: list[str], name: str = "") -> list[Turn]:
    return [
        Turn(
            f"t{n}",
            f"e{n}",
            "s",
            "assistant" if line.startswith("> ") else "user",
            "" if line.startswith("> ") else name,
            line.removeprefix("> "),
            START + timedelta(minutes=n),
            n + 1,
        )
        for n, line in enumerate(lines)
    ]


def summary(lines: list[str], name: str = "") -> str:
    return summarise(said(lines, name), ANALYSIS.text)


def tagged(lines: list[str]) -> list[str]:
    return tags([line.removeprefix("> ") for line in lines], WORDS.fold, WORDS.stem, ANALYSIS.text)


def cuts(lines: list[str]) -> list[int]:
    found = topics([Said(turn, ANALYSIS.text(turn.content), {}) for turn in said(lines)])
    return [len(topic) for topic in found]


def test_summarise_when_people_state_and_ask_then_statements_with_names_and_numbers_are_quoted() -> None:
    text = summary(DOG)
    assert "Biscuit" in text
    assert "border collie mix" in text
    assert "?" not in text
    assert length(text) <= MAX_WORDS


def test_summarise_when_chinese_then_whole_sentences_of_it() -> None:
    text = summary(DOG_ZH)
    assert "领养了一只狗" in text
    assert "边境牧羊犬" in text
    assert "吗" not in text


@pytest.mark.parametrize(
    ("lines", "wrong", "right"),
    [
        (
            ["The meeting is on Tuesday at noon.", "> Noted.", "Actually, the meeting is on Wednesday."],
            "Tuesday",
            "Wednesday",
        ),
        (["My flight lands at 9 in Oslo.", "Sorry, I meant it lands at 11 in Oslo."], "at 9", "at 11"),
        (["会议是周二三点。", "不对,会议是周三四点。"], "周二", "周三"),
        (["我的航班九点到奥斯陆。", "我说错了,航班十一点到奥斯陆。"], "九点", "十一点"),
    ],
)
def test_summarise_when_a_statement_is_corrected_then_only_the_correction_is_quoted(
    lines: list[str], wrong: str, right: str
) -> None:
    text = summary(lines)
    assert right in text
    assert wrong not in text


def test_summarise_when_told_what_is_untrue_then_it_is_left_out() -> None:
    turns = said(["I live in Paris near the river.", "I moved to Berlin in May."])
    text = summarise(turns, ANALYSIS.text, untrue=lambda at, sentence: "Paris" in sentence)
    assert "Paris" not in text
    assert "Berlin" in text


def test_summarise_when_speakers_have_names_then_it_says_who() -> None:
    turns = said(["I adopted a dog called Biscuit from the shelter in Lyon."], "Ann")
    turns += [t for t in said(["I bought a sailing boat in Marseille for 9000 euros."], "Ben")]
    text = summarise(turns, ANALYSIS.text)
    assert "Ann: I adopted" in text
    assert "Ben: I bought" in text


def test_summarise_when_the_same_is_said_ten_times_then_it_is_quoted_once() -> None:
    assert summary(["My cat Tom has a broken leg."] * 10).count("broken leg") == 1


def test_summarise_when_all_is_one_endless_sentence_then_it_is_cut_and_marked() -> None:
    text = summary(["word " * 5000])
    assert length(text) <= MAX_WORDS
    assert text.endswith("…")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=12))
def test_summarise_when_anything_is_said_then_it_is_short_and_made_of_what_was_said(lines: list[str]) -> None:
    text = summary([line for line in lines if line.strip()])
    assert length(text) <= MAX_WORDS + 1
    assert bool(text) == any(line.strip() for line in lines)


def test_summarise_when_turns_are_as_long_as_can_be_then_quick() -> None:
    long = [" ".join(f"word{n % 700} and some more of it." for n in range(4000))] * 16
    started = time.monotonic()
    summary(long)
    tagged([text[:4000] for text in long])
    assert time.monotonic() - started < 10


def test_sentences_when_abbreviated_numbers_and_code_then_cut_where_sentences_end() -> None:
    assert sentences("It costs 3.50 euros. Fine!\n```\nx. y. z\n```\n好。走吧") == [
        "It costs 3.50 euros.",
        "Fine!",
        "好。",
        "走吧",
    ]


def test_cut_when_chinese_then_by_characters() -> None:
    assert cut("一二三四五六七八", 2) == "一二三四…"


def test_tags_when_english_then_readable_words_of_the_topic() -> None:
    found = tagged(DOG)
    assert {"biscuit", "collie", "dog"} <= set(found)
    assert 3 <= len(found) <= MAX_TAGS
    assert not {"the", "she", "what", "have"} & set(found)


def test_tags_when_chinese_then_words_and_not_fragments() -> None:
    found = tagged(DOG_ZH)
    assert "边境牧羊犬" in found
    assert "花园" in found
    assert 3 <= len(found) <= MAX_TAGS


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("The password of the router in the attic is swordfish, the router is slow", "swordfish"),
        ("My wifi password: correcthorse. The wifi is slow", "correcthorse"),
        ("I use tr0ub4dor3 for the router at home", "tr0ub4dor3"),
        ("The api key is sk12ab34cd56 for the weather service", "sk12ab34cd56"),
        ("路由器的密码是芝麻开门。路由器在阁楼", "芝麻开门"),
    ],
)
def test_tags_when_a_secret_is_said_then_it_is_none(said: str, secret: str) -> None:
    found = tagged([said, said])
    assert found
    assert not any(secret[:4] in tag for tag in found)


def test_tags_when_a_name_has_digits_then_it_is_one() -> None:
    assert {"python3.11", "iphone15", "covid-19"} & set(tagged(["We moved to python3.11", "My iphone15 broke"])) == {
        "python3.11",
        "iphone15",
    }


def test_tags_when_traditional_and_simplified_then_the_same() -> None:
    assert tagged(["我想買護照和機票", "護照過期了"]) == tagged(["我想买护照和机票", "护照过期了"])


def test_topics_when_the_subject_changes_then_cut_there() -> None:
    assert cuts(DOG + TRIP) == [len(DOG), len(TRIP)]


def test_topics_when_one_subject_goes_on_then_not_cut() -> None:
    assert cuts(DOG) == [len(DOG)]


def test_topics_when_it_never_ends_then_bounded_and_nothing_is_lost() -> None:
    sizes = cuts([f"The garden needs water and plant number {n} too." for n in range(100)])
    assert sum(sizes) == 100
    assert max(sizes) <= MAX_TURNS


def test_topics_when_cut_then_no_answer_is_torn_from_its_question() -> None:
    lines = [line for n in range(12) for line in (f"Where is item{n} of box{n}?", f"> It is on shelf{n}.")]
    at = 0
    for size in cuts(lines)[:-1]:
        at += size
        assert not lines[at].startswith("> ")


def test_pieces_when_nobody_speaks_for_long_then_cut() -> None:
    turns = said(DOG)
    later = [Said(t, {}, {}) for t in turns[:3]] + [
        Said(Turn(**{f: getattr(t, f) for f in t.__slots__} | {"timestamp": t.timestamp + timedelta(hours=2)}), {}, {})
        for t in turns[3:]
    ]
    assert [len(piece) for piece in pieces(later, timedelta(minutes=30))] == [3, 3]
