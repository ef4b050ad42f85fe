"""Sentences, and what in a text is somebody else's words."""

from __future__ import annotations

import re
from dataclasses import dataclass

MASK = "ǂ"
"""Stands for a character of a quotation: a letter to patterns, so that a title is a word and nothing in it is read."""

_QUOTES = re.compile(r"\"[^\"\n]{1,400}\"|“[^”\n]{1,400}”|「[^」\n]{1,400}」|『[^』\n]{1,400}』|‘[^’\n]{2,100}’")
_FOREIGN = re.compile(
    r"```.*?(?:```|\Z)|^[ \t]*>[^\n]*|\[image: [^\]\n]{0,1000}\]|https?://\S+", re.DOTALL | re.MULTILINE
)
_END = re.compile(r"[.!?…]+(?=[\s\"')\]”]|$)|\n+|[。！？；]+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|st|prof|e\.g|i\.e|vs|no|jr|sr|inc|ltd|approx)|(?<!')\b[a-z]|\b(?:a|p)\.m|u\.s)\.$"
)

_TITLE = re.compile(r"(?:(?<=\bst)|(?<=\bdr)|(?<=\bmr)|(?<=\bms)|(?<=\bmt)|(?<=\bmrs)|(?<=\bprof))\.(?= \w)")

TASK = re.compile(
    r"\b(?:translate|rewrite|summarize|summarise|proofread|paraphrase|rephrase|polish|correct|edit|"
    r"fix|improve|shorten|analyze|analyse|classify|continue) "
    r"(?:(?:me|the|my|and|or|improve|polish|correct|please) )*(?:this|these|following|below|next|text|"
    r"sentences?|paragraph|e-?mail|essay|letter|message|story|passage|grammar|resume|cv)\b|"
    r"(?:翻译|改写|润色|总结|校对|续写|修改|缩写|扩写|分析|纠正)(?:一下)?"
    r"(?:成[^,:：，]{1,6})?(?:下面|以下|这|如下|文章|句子|段落|一段|[:：])|(?:把|"
    r"将)(?:下面|以下|这).{0,16}(?:翻译|改写|润色|改成|总结|校对)"
)
"""A request to work on a text: what follows it is that text, in lower case and simplified characters."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence's place in the text.

    Attributes:
        begin: Its first character.
        end: Behind its last one, the sign that ends it not counted.
        asks: It ends with a question mark.
    """

    begin: int
    end: int
    asks: bool

    @staticmethod
    def split(text: str) -> list[Sentence]:
        """The sentences of a text that is in lower case."""
        found, begin = [], 0
        for match in _END.finditer(text):
            if match[0] == "." and _ABBREVIATION.search(text, max(begin, match.end() - 8), match.end()):
                continue
            found.append(Sentence(begin, match.start(), "?" in match[0] or "？" in match[0]))
            begin = match.end()
        found.append(Sentence(begin, len(text), asks=False))
        return [s for s in found if text[s.begin : s.end].strip()]


def masked(text: str) -> str:
    """The text with quotations masked and foreign parts (code, quoted lines, captions, addresses) blank, each character in its place."""
    text = _FOREIGN.sub(lambda m: "".join("\n" if c == "\n" else " " for c in m[0]), text)
    return _QUOTES.sub(lambda m: MASK * len(m[0]), text)


def lower(text: str) -> str:
    """The text in lower case with straight apostrophes, every character in its place."""
    low = text.lower()
    if len(low) != len(text):
        low = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    # The dot of a title stands in the middle of a name: as a letter it ends neither sentence nor value.
    return _TITLE.sub("_", low.replace("’", "'"))


def words(text: str) -> frozenset[str]:
    """The words of a text between blanks, for tables of words."""
    return frozenset(text.split())
