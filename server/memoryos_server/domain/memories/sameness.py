"""Whether two memories say the same.

A memory wrongly taken for a duplicate is lost, one wrongly kept is only said twice. So closeness in words or meaning is
not enough: numbers, negations and names must agree, and words that exclude each other ("dark", "light") must not stand
against each other. Pure functions of texts and cosines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memoryos_server.domain.core.text import is_cjk

WORDED = 0.8
"""The share of common words (Dice) from which one text that only leaves words of the other out says the same."""

MEANT = 0.83
"""The cosine from which texts say the same."""

MEANT_WORDS = 0.3
"""The share of common words that texts of one script need besides."""

_SCOPE_WORDS, _SCOPE_SIGNS = 2, 3
"""How far a negation is taken to reach."""

_SCOPE_SHARED = 0.6

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?", re.UNICODE)
_ENDS = ".!?。！？:：;；\n"
_LOOK_BACK = 16  # characters between the end of a sentence and the next word
_COUNTED = re.compile(r"[一二三四五六七八九十两百千]+(?=[个只条岁年月日号点次本台辆口人名位杯天周])")
_NUMBER_TEXT = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_TEXT.split())}
_NOT_TEXT = """
not no never without cannot nor neither none nobody nothing stop stopped quit avoid avoids avoiding dislike dislikes
disliked hate hates hated refuse refuses unable former formerly
"""
_NOT = frozenset(_NOT_TEXT.split())
_NOT_CJK = re.compile(r"讨厌|停止|避免|拒绝|不|没|无|别|非|未|勿|戒")
_DIRECTED = re.compile(r"\b(?:over|than|instead|before|after|rather)\b|比|胜过|而不是|而非|之前|之后")
_WHO_CJK = re.compile(r"使用者|用户|我们|我的|我")
_COMMON_TEXT = """
a an the i me my mine we us our you your he him his she her hers it its they them their user users this that these those is
am are was were be been being do does did has have had having will would shall should can could may might must and or but if
of to in on at for from by with as than then so very really just also always please who whom which what when where there
here s t d ll m re ve
"""
_COMMON = frozenset(_COMMON_TEXT.split())
_COMMON_CJK = frozenset("的了吗呢吧啊呀是在有和与就都也很这那个")
_APART = (
    "monday tuesday wednesday thursday friday saturday sunday",
    "january february march april june july august september october november december",
    "spring summer autumn fall winter",
    "morning noon afternoon evening night",
    "dark light black white red green blue yellow brown grey gray pink purple orange",
    "left right",
    "north south east west",
    "brother sister mother father son daughter husband wife uncle aunt cousin friend colleague boss partner",
    "before after",
    "more less",
    "most least",
    "short long brief detailed concise verbose",
    "formal informal casual",
    "hot cold warm",
    "early late",
    "first last",
    "buy sell",
    "start end begin",
    "win lose",
    "cat dog",
    "tabs spaces",
    "male female man woman boy girl",
    "daily weekly monthly yearly",
    "public private",
    "old new young",
    "simplified traditional",
)


@dataclass(frozen=True, slots=True)
class Traits:
    """What is compared of a text.

    Attributes:
        plain: The text folded, letters and digits only.
        words: Stems of its telling words; pairs of CJK characters.
        numbers: Its numbers.
        denied: What its negations reach, or None where there is none.
        order: Its telling words in order.
        directed: It sets one thing before another ("tea over coffee"), so that the order of its words matters.
        names: Its names, folded, in order.
        cjk: It is mostly Chinese, Japanese or Korean.
    """

    plain: str
    words: frozenset[str]
    numbers: frozenset[str]
    denied: frozenset[str] | None
    order: tuple[str, ...]
    directed: bool
    names: tuple[str, ...]
    cjk: bool


class Sameness:
    """Compares memories. For several threads if its tools are.

    Args:
        fold: A text in one form for comparing: lower case, one width, simplified characters.
        stem: The stem of a lower-case word.
    """

    def __init__(self, fold: Callable[[str], str], stem: Callable[[str], str]) -> None:
        """Keeps its tools."""
        self._fold = fold
        self._stem = stem
        self._apart = {stem(word): group for group, line in enumerate(_APART) for word in line.split()}

    def traits(self, text: str) -> Traits:
        """What is compared of a text."""
        folded = self._fold(text)
        runs = list(_runs(_WHO_CJK.sub(" ", folded)))
        words: list[str] = []
        denied: list[str] | None = None
        numbers = set(_COUNTED.findall(folded))
        reach = 0
        for run, cjk in runs:
            if cjk:
                words += _pairs(run)
                for match in _NOT_CJK.finditer(run):
                    scope = run[match.end() : match.end() + _SCOPE_SIGNS]
                    denied = (denied or []) + (_pairs(scope) if len(scope) > 1 else [scope])
                continue
            for token in _TOKEN.findall(run):
                word = token.replace("’", "'")
                if word[0].isdigit() or word in _NUMBERS:
                    numbers.add(_NUMBERS.get(word, word))
                    continue
                if word in _NOT or word.endswith("n't"):
                    denied, reach = denied or [], _SCOPE_WORDS
                    continue
                word = word.removesuffix("'s")
                if word in _COMMON:
                    continue
                stem = self._stem(word)
                words.append(stem)
                if reach and denied is not None:
                    denied.append(stem)
                    reach -= 1
        signs = sum(map(is_cjk, folded))
        return Traits(
            plain="".join(c for c in folded if c.isalnum()),
            words=frozenset(words),
            numbers=frozenset(numbers),
            denied=None if denied is None else frozenset(denied),
            order=tuple(dict.fromkeys(words)),
            directed=bool(_DIRECTED.search(folded)),
            names=tuple(self._stem(self._fold(name)) for name in _names(text)),
            cjk=2 * signs > sum(c.isalpha() for c in folded),
        )

    def same(self, a: Traits, b: Traits, cosine: float | None) -> bool:
        """Whether two texts say the same.

        Args:
            a: One.
            b: The other.
            cosine: How close they are in meaning, or None if that is not known.
        """
        if a.plain == b.plain:
            return True
        if a.numbers != b.numbers or not _same_denied(a, b) or self._exclude(a, b):
            return False
        if not _same_names(a, b) or not _same_order(a, b):
            return False
        common = len(a.words & b.words)
        dice = 2 * common / (len(a.words) + len(b.words)) if a.words and b.words else 0.0
        if dice >= WORDED and (a.words <= b.words or b.words <= a.words):
            return True
        return cosine is not None and cosine >= MEANT and (dice >= MEANT_WORDS or a.cjk != b.cjk)

    def _exclude(self, a: Traits, b: Traits) -> bool:
        """Whether one text has a word where the other has another one of a group of which only one can hold."""
        only_a = {self._apart[word] for word in a.words - b.words if word in self._apart}
        only_b = {self._apart[word] for word in b.words - a.words if word in self._apart}
        return not only_a.isdisjoint(only_b)


def cosine(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float | None:
    """The best cosine of unit vectors of one name; None if no name is in both."""
    found = [sum(x * y for x, y in zip(a[name], b[name], strict=True)) for name in a if name in b]
    return max(found, default=None)


def _same_denied(a: Traits, b: Traits) -> bool:
    if a.denied is None or b.denied is None:
        return a.denied is b.denied
    if a.cjk != b.cjk:
        return True
    total = len(a.denied) + len(b.denied)
    return total == 0 or 2 * len(a.denied & b.denied) / total >= _SCOPE_SHARED


def _same_names(a: Traits, b: Traits) -> bool:
    """Whether neither names what the other does not. Names in Chinese script are not known as such."""
    if (not b.cjk and not b.words.issuperset(a.names)) or (not a.cjk and not a.words.issuperset(b.names)):
        return False
    return not (a.cjk and b.cjk) or set(a.names) == set(b.names)


def _same_order(a: Traits, b: Traits) -> bool:
    """Whether what must keep its order does: "Ann helps Ben" is not "Ben helps Ann", nor is "tea over coffee" the reverse."""
    matter = a.words & b.words if a.directed or b.directed else {*a.names, *b.names} & a.words & b.words
    return [w for w in a.order if w in matter] == [w for w in b.order if w in matter]


def _names(text: str) -> Iterator[str]:
    """Capitalised words inside of sentences, and Latin words between CJK characters."""
    chinese = any(map(is_cjk, text))
    seen: set[str] = set()
    for match in _TOKEN.finditer("".join(" " if is_cjk(c) else c for c in text) if chinese else text):
        word = match[0].replace("’", "'").removesuffix("'s")
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()].rstrip(" \"'“‘(*-")
        starts = not before or before[-1] in _ENDS
        capital = word[0].isupper() and (not starts or word[1:] != word[1:].lower())
        name = capital or (chinese and word[0].isascii())
        if name and word[0].isalpha() and word.lower() not in _COMMON and word.lower() not in seen:
            seen.add(word.lower())
            yield word


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or is_cjk(text[i]) != is_cjk(text[start]):
            yield text[start:i], is_cjk(text[start])
            start = i


def _pairs(run: str) -> list[str]:
    run = "".join(c for c in run if c not in _COMMON_CJK)
    return [run] if len(run) == 1 else [x + y for x, y in pairwise(run)]
