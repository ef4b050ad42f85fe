from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.ports import Turn
from memoryos_server.domain.recall import analysis
from memoryos_server.domain.recall.analysis import Analysis
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
    assert "carolin" in matches("What does Caroline like?", turn("Pottery", name="Caroline"))


def test_names_when_the_question_names_the_speaker_then_says_so() -> None:
    question = ANALYSIS.question("What is Caroline's hobby?")
    assert ANALYSIS.names(question, "Caroline Smith")
    assert not ANALYSIS.names(question, "Carol")
    assert not ANALYSIS.names(question, "")


def test_names_when_chinese_then_matches_within_the_sentence() -> None:
    question = ANALYSIS.question("张曼婷喜欢什么？")
    assert ANALYSIS.names(question, "張曼婷")
    assert not ANALYSIS.names(question, "王峰")


@given(st.text(max_size=200))
def test_analysis_when_given_any_text_then_every_weight_is_positive_and_bounded(text: str) -> None:
    assert all(0 < w < analysis.K1 + 1 for w in ANALYSIS.document(turn(text)).values())
    assert all(0 < w <= 1 and term for term, w in ANALYSIS.question(text).terms.items())


@given(st.text(alphabet="abc 你好吗电影01.@-", min_size=1, max_size=60))
def test_question_when_it_is_the_turn_itself_then_every_term_is_met(text: str) -> None:
    question = {t for t in ANALYSIS.question(text).terms if not t.startswith("@")}
    document = set(ANALYSIS.document(turn(text)))
    assert question <= document or document <= {*analysis.date_terms(datetime(2023, 4, 27, tzinfo=UTC))}
