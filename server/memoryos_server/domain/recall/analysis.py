"""From text to weighted terms: the lexical half of recall.

The terms of a turn are what its words, speaker and date say; a store adds how rare each term is among the subject's
turns (IDF) and sums products. English is stemmed, Chinese, Japanese and Korean go by characters and pairs, ids and
addresses stay whole beside their parts, and so do emoji that are made of several. Stemming and folding are handed in,
because they need dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from memoryos_server.domain.core.text import is_cjk
from memoryos_server.domain.ports import Turn
from memoryos_server.domain.recall.hints import hints
from memoryos_server.domain.recall.irregular import BASE

ANALYSIS_VERSION = 3
"""Raised when the terms of a text change; stored with the data, because terms of two versions do not match."""

K1 = 1.2
B = 0.3
AVERAGE_LENGTH = 24.0
"""The length, in terms, at which weights are neither raised nor lowered. Fixed: a weight, once kept, never changes."""

# What an occurrence in a field counts, against 1 in the text itself.
SIGN_WEIGHT = 0.3  # a single CJK character, or an emoji
NAME_WEIGHT = 1.0
CAPTION_WEIGHT = 1.0
DATE_WEIGHT = 1.0

_STOP_TEXT = """
a about after again all also am an and any are aren't as at be because been before being but by can can't could
couldn't did didn't do does doesn't doing don't down during each few for from further had hadn't has hasn't have
haven't having he her here hers herself him himself his how i i'd i'll i'm i've if in into is isn't it it's its
itself just let let's me more most my myself no nor not now of off on once only or other our ours ourselves out
over own same she should so some such than that that's the their theirs them themselves then there there's these
they they're this those through to too under until up us very was wasn't we we're we've were weren't what what's
when where which while who whom whose why will with won't would wouldn't yeah yes you you'd you'll you're you've
your yours yourself s t d ll m re ve
"""
_STOP = frozenset(_STOP_TEXT.split())
_CJK_STOP = frozenset("的了吗呢吧啊呀是我你他她它们在有和与就都也很这那个么什为")

GROUPS = 6
"""The most groups that a question's terms are scored in."""

# Of a question that is read for names: who is asked about stands near its beginning, and every name costs a keyed hash.
_NAMED_CHARS = 300
_CJK_NAMED_CHARS = 40
_CJK_NAMES = (2, 3, 4)  # characters

_WHEN = re.compile(
    r"\b(when|what (date|day|month|year|time)|which (date|day|month|year)|how long|since when)\b"
    r"|什么时候|哪天|哪一天|几月|几号|何时|多久|哪年|日期"
)
_COUNT = re.compile(r"\b(how (many|much|often|old))\b|多少|几[个次岁本只]")
_WHERE = re.compile(r"\b(where|(which|what) (country|city|state|place|town))\b|哪里|哪儿|什么地方")

_TOKEN = re.compile(r"\w+(?:['’]\w+)?(?:[-_.@:/+#]\w+)*")
_PART = re.compile(r"\w+(?:['’]\w+)?")
# Unicode Technical Standard 51: two regional indicators are a flag; joined ones are one emoji; a skin's tone and the mark
# that asks for a coloured picture change how one looks, not what it is.
_PICTURE = "\u2600-\u27bf\u2b05-\u2b55\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff"
_LOOKS = "\ufe0f\U0001f3fb-\U0001f3ff"
_EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[{_PICTURE}](?:[{_LOOKS}]*\u200d[{_PICTURE}])*")
_LOOK = re.compile(f"[{_LOOKS}]")
_CAPTION = re.compile(r"\[image: (.*?)\]\s*$", re.DOTALL)

_MONTH_TEXT = "january february march april may june july august september october november december"
_MONTHS = _MONTH_TEXT.split()
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH_NUMBER = {name: n for n, full in enumerate(_MONTHS, 1) for name in (full, full[:3])} | {"sept": 9}
_MONTH = "|".join(sorted(_MONTH_NUMBER, key=len, reverse=True))
_DATES = (
    re.compile(r"(?P<y>(?:19|20)\d\d)[-/.年](?P<m>\d{1,2})(?:[-/.月](?P<d>\d{1,2})[日号]?)?"),
    re.compile(r"(?P<m>\d{1,2})月(?:(?P<d>\d{1,2})[日号]?)?"),
    re.compile(rf"\b(?P<n>{_MONTH})\b\.?(?: (?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b)?,?(?: (?P<y>(?:19|20)\d\d))?"),
    re.compile(rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<n>{_MONTH})\b,?(?: (?P<y>(?:19|20)\d\d))?"),
)
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_WEEKDAY = re.compile(rf"\b({'|'.join(_DAYS)})\b")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, analysed.

    Attributes:
        terms: Term -> weight.
        folded: The text in one form for comparing.
        groups: The terms in few groups of neighbours, in the order of the text, so that a store can score each by itself.
        names: What may be the name of a speaker: its words, and short runs of CJK.
        when: It asks for a time.
        count: It asks for a number.
        where: It asks for a place.
    """

    terms: Mapping[str, float]
    folded: str
    groups: tuple[Mapping[str, float], ...] = ()
    names: frozenset[str] = frozenset()
    when: bool = False
    count: bool = False
    where: bool = False


class Analysis:
    """Turns text into terms. For several threads if its tools are."""

    def __init__(self, stem: Callable[[str], str], fold: Callable[[str], str]) -> None:
        """Keeps its tools.

        Args:
            stem: The stem of a lower-case word.
            fold: A text in one form for comparing: lower case, one width, one script.
        """
        self._stem = stem
        self._fold = fold

    def document(self, turn: Turn) -> dict[str, float]:
        """Term -> weight of a turn.

        A term that occurs tf times (an occurrence in the name, caption or date counting its field's weight) in a turn
        of `length` terms weighs `tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / AVERAGE_LENGTH))`.
        """
        folded = self._fold(turn.content)
        counts: dict[str, float] = {}
        length = 0
        caption = _CAPTION.search(folded)
        parts = [(folded, 1.0)] if caption is None else [(folded[: caption.start()], 1.0), (caption[1], CAPTION_WEIGHT)]
        for text, weight in (*parts, (self._fold(turn.name), NAME_WEIGHT)):
            for term in self._terms(text):
                counts[term] = counts.get(term, 0.0) + weight * _worth(term)
                length += not _is_sign(term)
        for term in date_terms(turn.timestamp):
            counts[term] = counts.get(term, 0.0) + DATE_WEIGHT
        norm = K1 * (1 - B + B * length / AVERAGE_LENGTH)
        return {term: tf * (K1 + 1) / (tf + norm) for term, tf in counts.items()}

    def text(self, text: str) -> dict[str, float]:
        """Term -> weight of a text without speaker or date, weighed as in `document`."""
        counts: dict[str, float] = {}
        length = 0
        for term in self._terms(self._fold(text)):
            counts[term] = counts.get(term, 0.0) + _worth(term)
            length += not _is_sign(term)
        norm = K1 * (1 - B + B * length / AVERAGE_LENGTH)
        return {term: tf * (K1 + 1) / (tf + norm) for term, tf in counts.items()}

    def question(self, text: str) -> Question:
        """The terms of a question, each counting once however often it is said, dates included."""
        folded = self._fold(text)
        terms = {term: _worth(term) for term in self._terms(folded)} | dict.fromkeys(_asked_dates(folded), 1.0)
        if not terms:  # nothing but stop words: then they are what is asked for
            terms = {self._stemmed(word): 1.0 for word in _PART.findall(folded)}
        return Question(
            terms,
            folded,
            _groups(terms),
            frozenset(_possible_names(folded)),
            when=bool(_WHEN.search(folded)),
            count=bool(_COUNT.search(folded)),
            where=bool(_WHERE.search(folded)),
        )

    def tells(self, question: Question, content: str) -> bool:
        """Whether a text says more than the question does: it has a term that the question has not."""
        return any(term not in question.terms for term in self._spoken(self._fold(content)))

    def names(self, name: str) -> tuple[str, ...]:
        """The words of a speaker's name as a question may have them; a CJK name as it stands."""
        folded = self._fold(name).strip()
        if any(map(is_cjk, folded)):
            return (folded,)
        return tuple(dict.fromkeys(_words(folded)))

    def hints(self, turn: Turn, terms: int) -> tuple[float, ...]:
        """Small numbers of a turn's form, for ranking; `terms` is how many terms it has. See `hints.HINTS`."""
        return hints(turn, self._fold(turn.content), terms)

    def _terms(self, text: str) -> Iterator[str]:
        yield from self._spoken(text)
        if not text.isascii():
            for match in _EMOJI.finditer(text):
                yield from _emoji(_LOOK.sub("", match[0]))

    def _spoken(self, text: str) -> Iterator[str]:
        for match in _TOKEN.finditer(text):
            token = match[0]
            if token.isascii():
                yield from self._latin(token)
            else:
                for run, cjk in _runs(token):
                    if cjk:
                        yield from _pairs(run)
                    else:
                        yield from self._latin(run)

    def _latin(self, token: str) -> Iterator[str]:
        parts = _PART.findall(token)
        if len(parts) > 1 and ("@" in token or any(c.isdigit() for c in token)):
            yield token  # an address, version, date or id: whole beside its parts
        for part in parts:
            if part not in _STOP:
                yield self._stemmed(part.replace("’", "'").removesuffix("'s"))

    def _stemmed(self, word: str) -> str:
        return self._stem(BASE.get(word, word))


def _words(folded: str) -> Iterator[str]:
    return (part.replace("’", "'").removesuffix("'s") for part in _PART.findall(folded))


def _groups(terms: Mapping[str, float]) -> tuple[Mapping[str, float], ...]:
    """The terms in at most `GROUPS` groups of about equal size; none if there is but one term."""
    if len(terms) < 2:
        return ()
    count = min(GROUPS, len(terms))
    groups: list[dict[str, float]] = [{} for _ in range(count)]
    for place, (term, weight) in enumerate(terms.items()):
        groups[place * count // len(terms)][term] = weight
    return tuple(groups)


def _possible_names(folded: str) -> Iterator[str]:
    yield from _words(folded[:_NAMED_CHARS])
    begin = folded[:_CJK_NAMED_CHARS]
    for token in () if begin.isascii() else _TOKEN.findall(begin):
        for run, cjk in _runs(token):
            if cjk:
                for length in _CJK_NAMES:
                    yield from (run[i : i + length] for i in range(len(run) - length + 1))


def _runs(token: str) -> Iterator[tuple[str, bool]]:
    start = 0
    for i in range(1, len(token) + 1):
        if i == len(token) or is_cjk(token[i]) != is_cjk(token[start]):
            yield token[start:i], is_cjk(token[start])
            start = i


def _emoji(joined: str) -> Iterator[str]:
    yield joined
    if len(parts := joined.split("\u200d")) > 1:
        yield from parts


def _is_sign(term: str) -> bool:
    return (len(term) == 1 and is_cjk(term)) or _EMOJI.match(term) is not None


def _worth(term: str) -> float:
    """What an occurrence of a term counts: a CJK character or an emoji says less than a word or a pair."""
    return SIGN_WEIGHT if _is_sign(term) else 1.0


def _pairs(run: str) -> Iterator[str]:
    """Single characters, because many a word has but one, and pairs, because most have two."""
    yield from (sign for sign in run if sign not in _CJK_STOP)
    for i in range(len(run) - 1):
        if run[i] not in _CJK_STOP or run[i + 1] not in _CJK_STOP:
            yield run[i : i + 2]


def date_terms(moment: datetime) -> list[str]:
    """The terms of a day: itself, day of the year, month, month of the year, year, weekday."""
    return [
        f"@{moment:%Y-%m-%d}",
        f"@-{moment:%m-%d}",
        f"@{moment:%Y-%m}",
        f"@-{moment:%m}",
        f"@{moment:%Y}",
        f"@{_DAYS[moment.weekday()]}",
    ]


def _asked_dates(text: str) -> Iterator[str]:
    for pattern in _DATES:
        for match in pattern.finditer(text):
            found = match.groupdict()
            month = _MONTH_NUMBER[found["n"]] if found.get("n") else int(found["m"])
            year, day = found.get("y"), found.get("d")
            if found.get("n") == "may" and not (year or day):
                continue  # more often the verb
            if not 1 <= month <= 12 or (day and not 1 <= int(day) <= 31):
                continue
            yield f"@-{month:02}"
            if day:
                yield f"@-{month:02}-{int(day):02}"
            if year:
                yield f"@{year}-{month:02}"
            if year and day:
                yield f"@{year}-{month:02}-{int(day):02}"
    for year in _YEAR.findall(text):
        yield f"@{year}"
    for day in _WEEKDAY.findall(text):
        yield f"@{day}"
