"""One way of attempting to take a model over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

STEM = 5
"""So many letters of a word tell whether a pattern may be there at all."""

_LETTERS = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Pattern:
    """How an attempt reads, in a folded text.

    Attributes:
        id: Its published name.
        anchors: Words without one of which there is no match; each is lower case, and rare in ordinary text.
        form: What matches. Every gap in it is bounded, so that a search takes time in proportion to the text.
        before: How many characters before an anchor a match may begin.
        after: How many behind its beginning it may end.
        gate: The beginnings of words (`STEM` letters) without one of which there is no anchor; empty: it is not known.
    """

    id: str
    anchors: tuple[str, ...]
    form: re.Pattern[str]
    before: int
    after: int
    gate: frozenset[str]

    def matches(self, text: str) -> bool:
        """Whether a folded text has it. Only the surroundings of anchors are looked at, each place once."""
        return any(self.form.search(text, start, end) for start, end in self._windows(text))

    def _windows(self, text: str) -> Iterator[tuple[int, int]]:
        places: list[int] = []
        for anchor in self.anchors:
            at = text.find(anchor)
            while at >= 0:
                places.append(at)
                at = text.find(anchor, at + len(anchor))
        if not places:
            return
        places.sort()
        start, end = max(0, places[0] - self.before), places[0] + self.after
        for place in places:
            if place - self.before > end:
                yield start, end
                start = place - self.before
            end = place + self.after
        yield start, end


def pattern(name: str, anchors: str, form: str, *, before: int = 24, after: int = 240) -> Pattern:
    """A pattern of anchors with bars between them, and an expression in which a blank is written `_`."""
    among = tuple(anchors.split("|"))
    gate = [_stem(anchor) for anchor in among]
    known = frozenset(gate) if all(gate) else frozenset[str]()
    return Pattern(name, among, re.compile(form.replace("_", " ")), before, after, known)


def _stem(anchor: str) -> str:
    """The beginning of the word in an anchor that is rarest, taken for the longest; "" if none is certain to begin there.

    A short word counts only where it ends, too: a longer one would have another beginning.
    """
    words = sorted(_LETTERS.finditer(anchor), key=lambda found: found.start() - found.end())
    for found in words:
        whole = anchor[found.end() : found.end() + 1] == " "
        inside = found.start() > 0 and anchor[found.start() - 1] == "'"
        if not inside and (len(found[0]) >= STEM or whole):
            return found[0][:STEM]
    return ""
