"""How times are written in English and Chinese, and which stretch of the calendar each means."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

Granularity = Literal["hour", "part", "day", "weekend", "week", "month", "season", "year", "decade"]


Found = tuple[datetime, datetime, Granularity] | None

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH_OF = {name: n for n, full in enumerate(_MONTHS, 1) for name in (full, full[:3])} | {"sept": 9}
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_DAY_OF = {name: n for n, full in enumerate(_DAYS) for name in (full, full[:3])} | {"tues": 1, "thur": 3, "thurs": 3}
_NUMBERS = {
    word: n
    for n, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 1
    )
} | {"a": 1, "an": 1, "a couple of": 2, "couple of": 2, "a couple": 2, "a few": 3, "few": 3, "several": 4, "half a": 0}
_DIGITS = {"〇": 0, "零": 0, "一": 1, "二": 2, "两": 2, "兩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8}
_DIGITS |= {"九": 9, "几": 3, "幾": 3, "日": 7, "天": 7}
_SEASON_OF = {"spring": 3, "summer": 6, "fall": 9, "autumn": 9, "winter": 12, "春": 3, "夏": 6, "秋": 9, "冬": 12}
_PART_OF = {"morning": (5, 12), "afternoon": (12, 18), "evening": (18, 24), "night": (18, 30)}
_PART_OF |= {
    "早": (5, 12),
    "上": (5, 12),
    "中": (11, 14),
    "下": (12, 18),
    "傍": (17, 20),
    "晚": (18, 30),
    "夜": (18, 30),
}
_STEP_OF = {"上": -1, "下": 1, "这": 0, "這": 0, "本": 0, "last": -1, "past": -1, "previous": -1, "this": 0, "next": 1}
_STEP_OF |= {"coming": 1, "following": 1, "current": 0}
_YEAR_OF = {"大前年": -3, "前年": -2, "去年": -1, "今年": 0, "明年": 1, "后年": 2, "後年": 2}
_DAY_STEP = {"大前": -3, "前": -2, "昨": -1, "今": 0, "明": 1, "后": 2, "後": 2, "大后": 3, "大後": 3}

_NEAR = {"yesterday": -1, "today": 0, "tomorrow": 1}
_N = (
    r"(?P<n>\d{1,3}|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:a )?few|"
    r"(?:a )?couple(?: of)?|several)"
)
_UNIT = r"(?P<u>hour|day|night|week|month|year|decade)s?"
_MON = (
    "(?P<m>january|february|march|april|may|june|july|august|september|october|november|december|jan|"
    "feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\\.?"
)
_DOW = r"(?P<w>monday|tuesday|wednesday|thursday|friday|saturday|sunday|mon|tues?|wed|thur?s?|fri|sat|sun)"
_DAY = r"(?P<d>[0-3]?\d)(?:st|nd|rd|th)?"
_STEP = r"(?P<s>last|past|previous|this|next|coming|following|current)"
_Z = "(?P<n>[0-9]{1,3}|[一二两兩三四五六七八九十几幾]{1,3})"
_ZU = "(?P<u>小时|小時|天|日|周|週|星期|礼拜|禮拜|月|年)"
_ZY = "(?P<y>(?:19|20)[0-9]{2}|[一二][〇零一二三四五六七八九]{3})年"
_ZM = "(?P<m>[0-9]{1,2}|十[一二]?|[一二三四五六七八九])月份?"
_ZD = "(?P<d>[0-9]{1,2}|[二三]?十[一二三四五六七八九]?|[一二三四五六七八九])[日号號]"
_ZW = "(?:周|週|星期|礼拜|禮拜)"


def _day(moment: datetime, step: int = 0) -> datetime:
    return datetime(moment.year, moment.month, moment.day, tzinfo=UTC) + timedelta(days=step)


def _days(start: datetime, n: int = 1, grain: Granularity = "day") -> Found:
    return start, start + timedelta(days=n), grain


def _week(at: datetime, step: int) -> datetime:
    return _day(at, 7 * step - at.weekday())


def _month(year: int, month: int, n: int = 1, grain: Granularity = "month") -> Found:
    """`n` months from a month on, which may be 0 or 13 and so on: then the year before or after."""
    first, behind = year * 12 + month - 1, year * 12 + month - 1 + n
    return (
        datetime(first // 12, first % 12 + 1, 1, tzinfo=UTC),
        datetime(behind // 12, behind % 12 + 1, 1, tzinfo=UTC),
        grain,
    )


def _year(year: int, n: int = 1) -> Found:
    return _month(year, 1, 12 * n, "year" if n == 1 else "decade")


def _number(word: str) -> int:
    if word.isdecimal():
        return int(word)
    return _NUMBERS[word] if word in _NUMBERS else _chinese(word)


def _chinese(word: str) -> int:
    """A number written in Chinese: 三, 十五, 二十, 二〇一九."""
    if word.isdecimal():
        return int(word)
    if "十" in word:
        tens, _, ones = word.partition("十")
        return (_DIGITS[tens] if tens else 1) * 10 + (_DIGITS[ones] if ones else 0)
    number = 0
    for digit in word:
        number = number * 10 + _DIGITS[digit]
    return number


def _steps(at: datetime, n: int, unit: str) -> Found:
    """The hour, day, week, month or year that is `n` of them away."""
    if unit in ("hour", "小时", "小時"):
        start = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=n)
        return start, start + timedelta(hours=1), "hour"
    if unit in ("day", "night", "天", "日"):
        return _days(_day(at, n))
    if unit in ("week", "周", "週", "星期", "礼拜", "禮拜"):
        return _days(_week(at, n), 7, "week")
    if unit in ("month", "月"):
        return _month(at.year, at.month + n)
    if unit == "decade":
        return _year(at.year + 10 * n - 5, 10)
    return _year(at.year + n)


def _back(at: datetime, n: int, unit: str) -> Found:
    """The last `n` of them, up to now."""
    found = _steps(at, -n, unit)
    return found and (found[0], at, found[2])


def _ahead(at: datetime, n: int, unit: str) -> Found:
    """The coming `n` of them, from now."""
    found = _steps(at, n, unit)
    return found and (at, found[1], found[2])


def _weekday(at: datetime, day: int, step: int, *, coming: bool) -> Found:
    if step < 0 or (step == 0 and not coming):
        back = (at.weekday() - day) % 7
        return _days(_day(at, -(back or (7 if step < 0 else 0))))
    ahead = (day - at.weekday()) % 7
    return _days(_day(at, ahead or (7 if step > 0 else 0)))


def _some_month(at: datetime, month: int, step: int | None, *, coming: bool) -> Found:
    """The month of that name before or behind now; its own year's for "this"."""
    if not 1 <= month <= 12:
        return None
    year = at.year
    if step == 0:
        pass
    elif step == 1 or (step is None and coming):
        year += month < at.month or (step == 1 and month == at.month)
    else:
        year -= month > at.month or (step == -1 and month == at.month)
    return _month(year, month)


def _date(at: datetime, month: int, day: int, year: str | None, *, coming: bool) -> Found:
    if year:
        return _days(datetime(_chinese(year), month, day, tzinfo=UTC))
    this = datetime(at.year, month, min(day, 28) if (month, day) == (2, 29) else day, tzinfo=UTC)
    # Not said to be ahead: a day up to a month from now is still more likely meant than one eleven months ago.
    if coming and this < _day(at):
        this = this.replace(year=at.year + 1)
    elif not coming and this > at + timedelta(days=31):
        this = this.replace(year=at.year - 1)
    return _days(this)


def _season(at: datetime, name: str, step: int | None, year: int | None = None) -> Found:
    month = _SEASON_OF[name]
    if year is None:
        year = at.year
        begins = datetime(year, month, 1, tzinfo=UTC)
        if step == 1:
            year += begins <= at
        elif step == -1:
            over = _month(year, month, 3)
            year -= over is not None and over[1] > at
    return _month(year, month, 3, "season")


def _part(day: datetime, name: str) -> Found:
    begin, end = _PART_OF[name]
    return day + timedelta(hours=begin), day + timedelta(hours=end), "part"


def _step(match: re.Match[str]) -> int | None:
    word = match["s"]
    if word is None:
        return None
    return len(word) * _STEP_OF[word[0]] if word[0] in "上下" else _STEP_OF[word]


def _english_period(match: re.Match[str], at: datetime, _: bool) -> Found:
    step, unit = _STEP_OF[match["s"]], match["u"]
    if unit == "weekend":
        # "Last weekend" on a Sunday is the one before; on a weekday it is the one that just ended.
        found = _week(at, step if step >= 0 else -1)
        return _days(found + timedelta(days=5), 2, "weekend")
    if unit == "night":
        return _part(_day(at, step), "night")
    if unit in _PART_OF:
        return _part(_day(at, step), unit)
    return _steps(at, step, unit)


def _chinese_weekday(match: re.Match[str], at: datetime, coming: bool) -> Found:
    day = _DIGITS[match["w"]] - 1
    step = _step(match)
    if step is None:
        return _weekday(at, day, 0, coming=coming)
    # 上周二 is Tuesday of the week before, also on a Wednesday: Chinese counts by weeks.
    return _days(_week(at, step) + timedelta(days=day))


def _chinese_day(match: re.Match[str], at: datetime, _: bool) -> Found:
    day = _day(at, _DAY_STEP[match["s"]])
    part = match["p"]
    return _part(day, part[0]) if part else _days(day)


def _chinese_ago(match: re.Match[str], at: datetime, _: bool) -> Found:
    if match["n"] == "半":
        return _month(at.year, at.month - 6)
    return _steps(at, -_chinese(match["n"]), match["u"])


def _chinese_year(match: re.Match[str], at: datetime, coming: bool) -> Found:
    year = at.year + _YEAR_OF[match["s"]]
    if match["m"]:
        month = _chinese(match["m"])
        return _days(datetime(year, month, _chinese(match["d"]), tzinfo=UTC)) if match["d"] else _month(year, month)
    return _season(at, match["q"], None, year) if match["q"] else _year(year)


def _same_month(match: re.Match[str], at: datetime, coming: bool) -> Found:
    """3号: of this month, or of the one before or behind."""
    day = _chinese(match["d"])
    step = (1 if coming and day < at.day else 0) - (0 if coming or day <= at.day else 1)
    found = _month(at.year, at.month + step)
    return found and _days(found[0].replace(day=day))


Read = Callable[[re.Match[str], datetime, bool], Found]


def _rule(pattern: str, read: Read) -> tuple[re.Pattern[str], Read]:
    return re.compile(pattern), read


RULES: tuple[tuple[re.Pattern[str], Read], ...] = (
    # Full dates.
    _rule(
        r"(?<![\d.v])(?<!version )(?P<y>(?:19|20)\d\d)[-/.](?P<m>[01]?\d)[-/.](?P<d>[0-3]?\d)(?![\d.]\d)",
        lambda m, at, c: _days(datetime(int(m["y"]), int(m["m"]), int(m["d"]), tzinfo=UTC)),
    ),
    _rule(
        rf"\b(?:the )?{_DAY}(?: of)? {_MON}(?!\w)(?:,? (?P<y>(?:19|20)\d\d)\b)?",
        lambda m, at, c: _date(at, _MONTH_OF[m["m"]], int(m["d"]), m["y"], coming=c),
    ),
    _rule(
        rf"\b{_MON} (?:the )?{_DAY}\b(?:,? (?P<y>(?:19|20)\d\d)\b)?",
        lambda m, at, c: _date(at, _MONTH_OF[m["m"]], int(m["d"]), m["y"], coming=c),
    ),
    _rule(
        rf"\b{_MON},?(?: of)? (?P<y>(?:19|20)\d\d)\b",
        lambda m, at, c: _month(int(m["y"]), _MONTH_OF[m["m"]]),
    ),
    _rule(
        r"\b(?P<q>spring|summer|fall|autumn|winter)(?: of)? (?P<y>(?:19|20)\d\d)\b",
        lambda m, at, c: _season(at, m["q"], None, int(m["y"])),
    ),
    _rule(
        r"\b(?:in|since|until|till|before|after|by|from|year|of) (?P<t>(?P<y>(?:19|20)\d\d))\b(?!\s*(?:%|[a-z]+s\b))",
        lambda m, at, c: _year(int(m["y"])),
    ),
    _rule(r"\b(?P<y>(?:19|20)\d)0'?s\b", lambda m, at, c: _year(int(m["y"]) * 10, 10)),
    # Relative to now.
    _rule(r"\b(?:the )?day before yesterday\b", lambda m, at, c: _days(_day(at, -2))),
    _rule(r"\b(?:the )?day after tomorrow\b", lambda m, at, c: _days(_day(at, 2))),
    _rule(
        r"\b(?P<d>yesterday|today|tomorrow)(?: (?P<p>morning|afternoon|evening|night))?\b",
        lambda m, at, c: _part(_day(at, _NEAR[m["d"]]), m["p"]) if m["p"] else _days(_day(at, _NEAR[m["d"]])),
    ),
    _rule(r"\btonight\b", lambda m, at, c: _part(_day(at), "night")),
    _rule(rf"\b{_STEP} (?P<u>hour|week|weekend|month|year|decade|night|morning|afternoon|evening)\b", _english_period),
    _rule(
        rf"\b(?:on )?{_STEP} {_DOW}\b", lambda m, at, c: _weekday(at, _DAY_OF[m["w"]], _STEP_OF[m["s"]], coming=True)
    ),
    _rule(rf"\b{_STEP} {_MON}(?!\w)", lambda m, at, c: _some_month(at, _MONTH_OF[m["m"]], _STEP_OF[m["s"]], coming=c)),
    _rule(
        rf"\b{_STEP} (?P<q>spring|summer|fall|autumn|winter)\b", lambda m, at, c: _season(at, m["q"], _STEP_OF[m["s"]])
    ),
    _rule(r"\b(?:the )?(?P<s>week|month|year) before last\b", lambda m, at, c: _steps(at, -2, m["s"])),
    _rule(
        rf"\b(?:about |around |over |almost )?{_N} {_UNIT} (?:ago|back)\b",
        lambda m, at, c: _steps(at, -_number(m["n"].strip()), m["u"]),
    ),
    _rule(r"\bhalf a year ago\b", lambda m, at, c: _month(at.year, at.month - 6)),
    _rule(
        (
            rf"\b(?:in|within) (?:about )?{_N} {_UNIT}(?: time)?\b(?! of\b)|"
            rf"\b{_N.replace('<n>', '<n2>')} {_UNIT.replace('<u>', '<u2>')} from now\b"
        ),
        lambda m, at, c: _steps(at, _number((m["n"] or m["n2"]).strip()), m["u"] or m["u2"]),
    ),
    _rule(
        rf"\b(?:the |these )?(?:last|past) {_N} {_UNIT}\b", lambda m, at, c: _back(at, _number(m["n"].strip()), m["u"])
    ),
    _rule(rf"\b(?:the )?(?:next|coming) {_N} {_UNIT}\b", lambda m, at, c: _ahead(at, _number(m["n"].strip()), m["u"])),
    _rule(
        rf"\bon {_DOW}s?\b(?! \d)",
        lambda m, at, c: None if m[0].endswith("days") else _weekday(at, _DAY_OF[m["w"]], 0, coming=c),
    ),
    _rule(
        r"\b(?P<w>monday|tuesday|wednesday|thursday|friday|saturday|sunday)\b",
        lambda m, at, c: _weekday(at, _DAY_OF[m["w"]], 0, coming=c),
    ),
    _rule(
        r"\b(?:in|since|until|till|before|after|by|from|early|mid|late) "
        r"(?P<t>(?P<m>january|february|march|april|may|june|july|august|september|october|november|"
        r"december))\b(?! \d)",
        lambda m, at, c: _some_month(at, _MONTH_OF[m["m"]], None, coming=c),
    ),
    # Chinese.
    _rule(
        f"{_ZY}{_ZM}(?:{_ZD})?",
        lambda m, at, c: (
            _days(datetime(_chinese(m["y"]), _chinese(m["m"]), _chinese(m["d"]), tzinfo=UTC))
            if m["d"]
            else _month(_chinese(m["y"]), _chinese(m["m"]))
        ),
    ),
    _rule(f"{_ZY}(?P<q>[春夏秋冬])(?:天|季)?", lambda m, at, c: _season(at, m["q"], None, _chinese(m["y"]))),
    _rule(_ZY, lambda m, at, c: _year(_chinese(m["y"]))),
    _rule(
        f"(?P<s>大前年|前年|去年|今年|明年|后年|後年)(?:的?(?:{_ZM}(?:{_ZD})?|(?P<q>[春夏秋冬])(?:天|季)))?",
        _chinese_year,
    ),
    _rule(f"{_ZM}(?:{_ZD})", lambda m, at, c: _date(at, _chinese(m["m"]), _chinese(m["d"]), None, coming=c)),
    _rule(
        f"(?<![0-9个個年]){_ZM}(?![0-9一二三四五六七八九十])",
        lambda m, at, c: _some_month(at, _chinese(m["m"]), None, coming=c),
    ),
    _rule(
        "(?P<s>大前|前|昨|今|明|大后|大後|后|後)[天日](?P<p>早上|早晨|上午|中午|下午|傍晚|晚上|夜里|夜裡)?",
        _chinese_day,
    ),
    _rule("(?P<s>昨|今|明)(?P<p>早|晚)", _chinese_day),
    _rule(
        "(?:(?P<s>上{1,3}|下{1,3}|这|這|本)[个個]?)?" + _ZW + "(?P<w>[一二三四五六日天])(?!天|年|个|個|月)",
        _chinese_weekday,
    ),
    _rule(
        "(?P<s>上{1,3}|下{1,3}|这|這|本)?[个個]?(?:" + _ZW + "|周|週)末",
        lambda m, at, c: _days(_week(at, _step(m) or 0) + timedelta(days=5), 2, "weekend"),
    ),
    _rule("(?P<s>上{1,3}|下{1,3}|这|這|本)[个個]?" + _ZW, lambda m, at, c: _days(_week(at, _step(m) or 0), 7, "week")),
    _rule("(?P<s>上{1,3}|下{1,3}|这|這|本)[个個]?月", lambda m, at, c: _month(at.year, at.month + (_step(m) or 0))),
    _rule(
        f"(?:{_Z}[个個]?多?{_ZU}|(?P<h>半)年)[之以]?前",
        lambda m, at, c: _month(at.year, at.month - 6) if m["h"] else _chinese_ago(m, at, c),
    ),
    _rule(f"{_Z}[个個]?{_ZU}[之以]?[后後]", lambda m, at, c: _steps(at, _chinese(m["n"]), m["u"])),
    _rule(f"(?:过去|過去|最近|近)(?:这|這)?{_Z}[个個]?{_ZU}", lambda m, at, c: _back(at, _chinese(m["n"]), m["u"])),
    _rule(f"(?:未来|未來|接下来|接下來){_Z}[个個]?{_ZU}", lambda m, at, c: _ahead(at, _chinese(m["n"]), m["u"])),
    _rule("(?<![月0-9一二三四五六七八九十])(?P<d>[0-3]?[0-9])[号號](?![0-9a-z楼樓线線门門店])", _same_month),
)
