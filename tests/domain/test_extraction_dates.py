from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memory.extraction import resolve

AT = datetime(2024, 5, 15, 10, tzinfo=UTC)  # a Wednesday

# Text | words | first day | day after the last | granularity | relation
CASES = """
I ate there yesterday | yesterday | 2024-05-14 | 2024-05-15 | day | in
the day before yesterday we met | the day before yesterday | 2024-05-13 | 2024-05-14 | day | in
I leave tomorrow | tomorrow | 2024-05-16 | 2024-05-17 | day | in
I moved last Tuesday | last Tuesday | 2024-05-14 | 2024-05-15 | day | in
we met last Wednesday | last Wednesday | 2024-05-08 | 2024-05-09 | day | in
see you next Friday | next Friday | 2024-05-17 | 2024-05-18 | day | in
I saw her on Friday | on Friday | 2024-05-10 | 2024-05-11 | day | in
We will meet on Friday | on Friday | 2024-05-17 | 2024-05-18 | day | in
last weekend was fun | last weekend | 2024-05-11 | 2024-05-13 | weekend | in
three weeks ago | three weeks ago | 2024-04-22 | 2024-04-29 | week | in
a couple of years ago | a couple of years ago | 2022-01-01 | 2023-01-01 | year | in
2 days ago I left | 2 days ago | 2024-05-13 | 2024-05-14 | day | in
I start next month | next month | 2024-06-01 | 2024-07-01 | month | in
last year I quit | last year | 2023-01-01 | 2024-01-01 | year | in
on 5 May | 5 May | 2024-05-05 | 2024-05-06 | day | in
May 3rd, 2023 it was | May 3rd, 2023 | 2023-05-03 | 2023-05-04 | day | in
it was on December 24 | December 24 | 2023-12-24 | 2023-12-25 | day | in
I will fly on March 2 | March 2 | 2025-03-02 | 2025-03-03 | day | in
in 2019 | 2019 | 2019-01-01 | 2020-01-01 | year | in
before 2020 | 2020 | 2020-01-01 | 2021-01-01 | year | before
since March | March | 2024-03-01 | 2024-04-01 | month | since
in November | November | 2023-11-01 | 2023-12-01 | month | in
March 2021 | March 2021 | 2021-03-01 | 2021-04-01 | month | in
summer of 2021 | summer of 2021 | 2021-06-01 | 2021-09-01 | season | in
last summer | last summer | 2023-06-01 | 2023-09-01 | season | in
in the 1990s | 1990s | 1990-01-01 | 2000-01-01 | decade | in
in two weeks | in two weeks | 2024-05-27 | 2024-06-03 | week | in
on 2023-01-09 | 2023-01-09 | 2023-01-09 | 2023-01-10 | day | in
昨天我去了 | 昨天 | 2024-05-14 | 2024-05-15 | day | in
前天 | 前天 | 2024-05-13 | 2024-05-14 | day | in
后天见 | 后天 | 2024-05-17 | 2024-05-18 | day | in
上周二搬家 | 上周二 | 2024-05-07 | 2024-05-08 | day | in
這個星期三 | 這個星期三 | 2024-05-15 | 2024-05-16 | day | in
下星期一开会 | 下星期一 | 2024-05-20 | 2024-05-21 | day | in
上上周五 | 上上周五 | 2024-05-03 | 2024-05-04 | day | in
上个月 | 上个月 | 2024-04-01 | 2024-05-01 | month | in
下個月 | 下個月 | 2024-06-01 | 2024-07-01 | month | in
三天前 | 三天前 | 2024-05-12 | 2024-05-13 | day | in
兩週前 | 兩週前 | 2024-04-29 | 2024-05-06 | week | in
半年前 | 半年前 | 2023-11-01 | 2023-12-01 | month | in
十五天后 | 十五天后 | 2024-05-30 | 2024-05-31 | day | in
去年 | 去年 | 2023-01-01 | 2024-01-01 | year | in
去年三月 | 去年三月 | 2023-03-01 | 2023-04-01 | month | in
前年夏天 | 前年夏天 | 2022-06-01 | 2022-09-01 | season | in
2024年5月3日 | 2024年5月3日 | 2024-05-03 | 2024-05-04 | day | in
二〇一九年 | 二〇一九年 | 2019-01-01 | 2020-01-01 | year | in
从2019年开始 | 2019年 | 2019-01-01 | 2020-01-01 | year | since
自从三月以来 | 三月 | 2024-03-01 | 2024-04-01 | month | since
2020年之前 | 2020年 | 2020-01-01 | 2021-01-01 | year | before
"""


@pytest.mark.parametrize("case", [line for line in CASES.splitlines() if line])
def test_resolve_when_a_time_is_named_then_its_span(case: str) -> None:
    text, words, start, end, grain, relation = (part.strip() for part in case.split("|"))
    (span,) = resolve(text, AT)
    assert (span.text, f"{span.start:%Y-%m-%d}", f"{span.end:%Y-%m-%d}") == (words, start, end)
    assert (span.granularity, span.relation) == (grain, relation)
    assert text[span.offset :].startswith(words)


@pytest.mark.parametrize(
    "text",
    [
        "I may go",
        "30 February",
        "version 2024.1.2 of it",
        "python 3.12",
        "三个月",
        "5号线",
        "2.5 stars",
        "",
        "9999999 years",
        "march on",
    ],
)
def test_resolve_when_no_time_is_named_then_nothing(text: str) -> None:
    assert resolve(text, AT) == []


def test_resolve_when_a_part_of_a_day_is_named_then_its_hours() -> None:
    (span,) = resolve("last night", AT)
    assert (span.start, span.end) == (datetime(2024, 5, 14, 18, tzinfo=UTC), datetime(2024, 5, 15, 6, tzinfo=UTC))
    assert span.granularity == "part"


def test_resolve_when_several_times_then_in_their_order() -> None:
    assert [s.text for s in resolve("From 2019 to last week, but not yesterday", AT)] == [
        "2019",
        "last week",
        "yesterday",
    ]


def test_resolve_when_the_calendar_ends_then_nothing_breaks() -> None:
    assert resolve("999 years ago, 999年前", datetime(1, 1, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    "piece", ["昨天我去了三天前的", "上", "十", "last may 5 in 20 three ", "1", "in ", "2019-", " "]
)
def test_resolve_when_the_text_is_long_then_time_is_linear(piece: str) -> None:
    start = time.process_time()
    resolve((piece * 100_000)[:100_000], AT)
    assert time.process_time() - start < 2
