"""Who somebody is, in a few words: the profile out of what is believed of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from memoryos_server.domain.core.text import is_cjk
from memoryos_server.domain.memory.extraction.model import SPEAKER
from memoryos_server.domain.memory.facts import order_of
from memoryos_server.domain.memory.knowledge import Belief

MOST_FACTS = 24
MOST_CHARS = 700
_PER_PREDICATE = 6
_SURE = 0.5


def profile(beliefs: Sequence[Belief]) -> str:
    """A short text in the language of the facts, "" if nothing is known.

    Facts of one kind that differ in their value only share a sentence: `Likes hiking, coffee.` The user comes first, then
    whoever else spoke for themselves, by how much is known of them.
    """
    chosen = [b for b in beliefs if b.group == "profile" and b.confidence >= _SURE]
    known: dict[str, list[Belief]] = {}
    for one in chosen:
        known.setdefault(one.who, []).append(one)
    people = sorted(known, key=lambda who: (who != SPEAKER, -len(known[who]), who))
    texts: list[str] = []
    left = MOST_FACTS
    for who in people:
        mine = known[who][:left]
        left -= len(mine)
        sentences = _sentences(mine)
        # Third persons' facts name them; a speaker with a name is named once.
        if who != SPEAKER and any(who.casefold() not in one.sentence.casefold() for one in mine):
            sentences[0] = f"{who}: {sentences[0]}"
        texts += sentences
        if left <= 0:
            break
    return _joined(texts)


def _sentences(beliefs: Sequence[Belief]) -> list[str]:
    made: list[str] = []
    order = sorted(beliefs, key=lambda b: (order_of(b.predicate), b.predicate))
    for _, same in groupby(order, key=lambda b: b.predicate):
        by_frame: dict[tuple[str, str], list[str]] = {}
        for one in list(same)[:_PER_PREDICATE]:
            before, value, after = one.sentence.rpartition(one.value) if one.value else (one.sentence, "", "")
            by_frame.setdefault((before, after.rstrip(".。")), []).append(value)
        for (before, after), values in by_frame.items():
            cjk = any(map(is_cjk, before + "".join(values)))
            made.append(before + ("、" if cjk else ", ").join(values) + after)
    return [text for text in made if text.strip()]


def _joined(texts: Sequence[str]) -> str:
    out = ""
    for text in texts:
        stop = "" if text[-1] in ".!?。！？" else "。" if is_cjk(text[-1]) else "."
        glue = "" if not out or out[-1] == "。" else " "
        if len(out) + len(glue) + len(text) + len(stop) > MOST_CHARS:
            break
        out += glue + text + stop
    return out
