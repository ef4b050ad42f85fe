from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.ports import Turn
from memoryos_server.domain.recall import analysis
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.hints import HINTS
from memoryos_server.tools.words import Words

WORDS = Words()
ANALYSIS = Analysis(WORDS.stem, WORDS.fold)


def turn(content: str, *, name: str = "", when: datetime = datetime(2023, 4, 27, 12, tzinfo=UTC)) -> Turn:
    return Turn("i", "e", "s", "user", name, content, when)


def matches(question: str, said: Turn) -> set[str]:
    return set(ANALYSIS.question(question).terms) & set(ANALYSIS.document(said))


def test_question_when_inflected_otherwise_then_meets_the_turn() -> None:
    assert matches("Where did they go hiking?", turn("We hiked along the coast")) == {"hike"}


def test_document_when_it_has_stop_words_then_keeps_none_of_them() -> None:
    terms = {t for t in ANALYSIS.document(turn("It's the one that I've been to")) if not t.startswith("@")}
    assert terms == {"one"}


def test_chinese_when_analysed_then_goes_by_pairs() -> None:
    assert {"科幻", "幻电", "电影"} <= set(ANALYSIS.document(turn("科幻电影")))


def test_chinese_when_traditional_then_meets_simplified() -> None:
    assert {"电脑", "发现"} <= matches("電腦發現了", turn("我发现电脑坏了"))


def test_mixed_script_when_analysed_then_both_sides_are_found() -> None:
    assert {"python", "编程"} <= matches("Python编程", turn("我喜欢用python来编程"))


@pytest.mark.parametrize("token", ["ann.lee@example.org", "inv-2024-0093", "v2.13.1", "192.168.0.7"])
def test_address_or_id_when_analysed_then_stays_whole(token: str) -> None:
    assert token in matches(f"what about {token}?", turn(f"It was {token.upper()}, I think"))


def test_full_width_when_analysed_then_equals_half_width() -> None:
    assert "abc123" in matches("ABC123", turn("ＡＢＣ１２３"))


@pytest.mark.parametrize(
    ("question", "term"),
    [
        ("What happened on April 27th, 2023?", "@2023-04-27"),
        ("what did we do on 27 April", "@-04-27"),
        ("in 2023-04-27", "@2023-04-27"),
        ("我4月27号做了什么", "@-04-27"),
        ("2023年4月", "@2023-04"),
        ("Who came on Thursday?", "@thursday"),
        ("the trip of 2023", "@2023"),
    ],
)
def test_question_when_it_names_a_date_then_meets_turns_of_that_day(question: str, term: str) -> None:
    assert term in matches(question, turn("nothing about it"))


def test_question_when_may_is_a_verb_then_names_no_month() -> None:
    assert not [t for t in ANALYSIS.question("What may I eat?").terms if t.startswith("@")]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("🎉", "We won! 🎉🎉"),
        ("👍🏽", "Fine 👍"),
        ("❤️", "I ❤ it"),
        ("🇯🇵", "Two weeks in 🇯🇵"),
        ("👩‍💻", "My sister 👩🏾‍💻 works late"),
        ("💻", "My sister 👩‍💻 works late"),
        ("哪天🎂?", "生日快乐🎂"),
    ],
)
def test_emoji_when_said_then_is_found_however_it_looks(question: str, said: str) -> None:
    assert matches(question, turn(said))


def test_emoji_when_another_is_asked_for_or_only_one_is_more_then_it_says_nothing() -> None:
    assert not matches("🇯🇵", turn("A week in 🇫🇷"))
    assert not matches("👩‍💻", turn("My brother 👨‍🍳 cooks"))
    assert not ANALYSIS.tells(ANALYSIS.question("We won"), "We won 🎉")


def test_question_when_only_stop_words_then_asks_for_them() -> None:
    assert ANALYSIS.question("who are you?").terms.keys() == {"who", "are", "you"}


def test_question_when_there_is_no_word_then_has_no_terms() -> None:
    assert ANALYSIS.question("?!").terms == {}


def test_document_when_weighed_then_follows_the_stated_formula() -> None:
    weights = ANALYSIS.document(turn("tea tea cake"))
    norm = analysis.K1 * (1 - analysis.B + analysis.B * 3 / analysis.AVERAGE_LENGTH)
    assert weights["tea"] == pytest.approx(2 * (analysis.K1 + 1) / (2 + norm))
    assert weights["cake"] == pytest.approx((analysis.K1 + 1) / (1 + norm))


def test_document_when_the_speaker_has_a_name_then_is_found_by_it() -> None:
    assert "josephin" in matches("What does Josephine like?", turn("Pottery", name="Josephine"))


def named(question: str, name: str) -> bool:
    return not ANALYSIS.question(question).names.isdisjoint(ANALYSIS.names(name))


def test_names_when_the_question_names_the_speaker_then_they_meet() -> None:
    assert named("What is Josephine's hobby?", "Josephine Smith")
    assert not named("What is Josephine's hobby?", "Joseph")
    assert not named("What is Josephine's hobby?", "")


def test_names_when_chinese_then_they_meet_within_the_sentence() -> None:
    assert named("李晓雨喜欢什么？", "李曉雨")
    assert not named("李晓雨喜欢什么？", "王峰")


@pytest.mark.parametrize(("asked", "said"), [("buy", "bought"), ("go", "gone"), ("children", "child")])
def test_irregular_word_when_asked_in_another_form_then_meets_the_turn(asked: str, said: str) -> None:
    assert matches(asked, turn(said))


@pytest.mark.parametrize("text", ["one", "a red tea pot", "x y z " * 40, "我去年在上海喝了很多绿茶和红茶"])
def test_groups_when_put_together_then_are_the_terms_in_order(text: str) -> None:
    question = ANALYSIS.question(text)
    assert len(question.groups) <= analysis.GROUPS
    if len(question.terms) > 1:
        assert [t for group in question.groups for t in group] == list(question.terms)
        assert {t: w for group in question.groups for t, w in group.items()} == question.terms


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("When did Ann move?", (True, False, False)),
        ("How many cats does Bob have?", (False, True, False)),
        ("Which city does he live in?", (False, False, True)),
        ("What is his job?", (False, False, False)),
        ("我什么时候搬的家？", (True, False, False)),
        ("他有几只猫？", (False, True, False)),
        ("你住在哪里？", (False, False, True)),
    ],
)
def test_question_when_it_asks_for_time_number_or_place_then_says_so(text: str, asked: tuple[bool, bool, bool]) -> None:
    question = ANALYSIS.question(text)
    assert (question.when, question.count, question.where) == asked


def hinted(content: str, role: str = "user") -> dict[str, float]:
    said = Turn("i", "e", "s", role, "", content, datetime(2024, 1, 1, tzinfo=UTC))
    return dict(zip(HINTS, ANALYSIS.hints(said, 7), strict=True))


def test_hints_when_a_turn_asks_below_a_picture_then_says_so() -> None:
    assert hinted("Is it yours?\n[image: a cat]")["asks"] == 1.0
    assert hinted("It is mine.\n[image: is it?]")["asks"] == 0.0


def test_hints_when_form_differs_then_tell_it_in_both_languages() -> None:
    assert hinted("Thanks! I met Dr Weber and Rosa last week.")["names"] == 1.0
    for text in ("Hi, I moved last year", "你好，我去年搬家了"):
        found = hinted(text)
        assert (found["opening"], found["first_person"], found["time"]) == (1.0, 1.0, 1.0)
    assert hinted("ok", "assistant")["assistant"] == 1.0


def test_hints_when_a_turn_is_very_long_then_are_small_numbers_in_bounded_time() -> None:
    begin = time.perf_counter()
    for text in ("a " * 50_000, "Aa" * 50_000, "天" * 100_000, "?" * 100_000, "🙂" * 100_000):
        assert all(0 <= hint <= 20 for hint in ANALYSIS.hints(turn(text), 5))
    assert time.perf_counter() - begin < 20  # some 0.1 s; the bound forgives a busy machine


@pytest.mark.parametrize(
    "sign", ["word ", "天气", "a1-b2@", "🙂🏽 ", "ｶﾅ한글", "2024-05-01 ", "don't ", "(((", "\u0301"]
)
def test_analysis_when_a_text_has_100k_characters_then_takes_bounded_time(sign: str) -> None:
    text = (sign * (100_000 // len(sign) + 1))[:100_000]
    begin = time.perf_counter()
    ANALYSIS.document(turn(text))
    ANALYSIS.question(text)
    assert time.perf_counter() - begin < 30  # some 0.3 s; the bound forgives a busy machine


@given(st.text(alphabet="a 我1?!🙂茶́-@'’", max_size=80))
def test_question_when_scripts_are_mixed_then_groups_hold_every_term_once(text: str) -> None:
    question = ANALYSIS.question(text)
    grouped = [term for group in question.groups for term in group]
    assert grouped == (list(question.terms) if len(question.terms) > 1 else [])


@given(st.text(max_size=200))
def test_analysis_when_given_any_text_then_every_weight_is_positive_and_bounded(text: str) -> None:
    assert all(0 < w < analysis.K1 + 1 for w in ANALYSIS.document(turn(text)).values())
    assert all(0 < w <= 1 and term for term, w in ANALYSIS.question(text).terms.items())


@given(st.text(alphabet="abc 你好吗电影01.@-", min_size=1, max_size=60))
def test_question_when_it_is_the_turn_itself_then_every_term_is_met(text: str) -> None:
    question = {t for t in ANALYSIS.question(text).terms if not t.startswith("@")}
    document = set(ANALYSIS.document(turn(text)))
    assert question <= document or document <= {*analysis.date_terms(datetime(2023, 4, 27, tzinfo=UTC))}
