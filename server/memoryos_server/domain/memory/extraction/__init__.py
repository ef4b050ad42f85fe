"""What a text says: rules for junk, dates, facts and instructions, in English and Chinese.

Pure functions of the text. Precision comes before recall: a wrong fact is worse than a missing one, because every turn
stays findable as it was said. So questions, wishes, hypotheses, quotes and what an assistant says give no facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from memoryos_server.domain.memory.extraction import chinese, english, rules
from memoryos_server.domain.memory.extraction.dates import Span, resolve
from memoryos_server.domain.memory.extraction.junk import judge, without_memory
from memoryos_server.domain.memory.extraction.model import (
    ASSERTED,
    ENDED,
    SPEAKER,
    Candidate,
    Extraction,
    Fact,
    MemoryType,
    Predicate,
    Rule,
    predicate,
)

__all__ = [
    "ASSERTED",
    "ENDED",
    "SPEAKER",
    "Candidate",
    "Extraction",
    "Fact",
    "Predicate",
    "Rule",
    "Span",
    "extract",
    "extract_memories",
    "judge",
    "predicate",
    "resolve",
]


def extract(text: str, *, speaker: str, role: str, said_at: datetime, fold: Callable[[str], str]) -> Extraction:
    """The facts and rules that a turn states.

    Args:
        text: What was said.
        speaker: The speaker's name, "" if unknown: a sentence that names them is about them.
        role: `user`, `assistant` or `system`; only what users say gives anything.
        said_at: When it was said, UTC: what "last Tuesday" is counted from.
        fold: A text in one form for comparing: lower case, one width, simplified characters.
    """
    if role != "user":
        return Extraction()
    text = without_memory(text)
    if judge(text, role):
        return Extraction()
    spans = resolve(text, said_at)
    told = tuple(rules.find(text, fold))
    found: dict[tuple[str, str, str, str, bool], Fact] = {}
    for fact in (*english.facts(text, spans, said_at, speaker), *chinese.facts(text, spans, said_at, speaker, fold)):
        if fact.predicate != "name" and any(fact.quote in rule.content for rule in told):
            continue  # "I prefer short answers" is an instruction
        key = fold(fact.subject), fact.predicate, fold(fact.value), fact.polarity, fact.denied
        found.setdefault(key, fact)
    return Extraction(tuple(found.values()), told)


def extract_memories(
    messages: Iterable[tuple[str, str]], *, said_at: datetime, fold: Callable[[str], str]
) -> list[Candidate]:
    """The typed memories that a conversation suggests, in its order, none twice.

    Args:
        messages: Role and text of each message; a plain text is one message of the user.
        said_at: When it was said, UTC.
        fold: As for `extract`.
    """
    found: dict[str, Candidate] = {}
    for role, text in messages:
        said = extract(text, speaker="", role=role, said_at=said_at, fold=fold)
        for rule in said.rules:
            found.setdefault(fold(rule.content), Candidate(rule.content, "rule", rule.importance))
        for fact in said.facts:
            if not fact.ended:
                kind: MemoryType = "context" if fact.predicate in _PASSING else "fact"
                found.setdefault(fold(fact.sentence), Candidate(fact.sentence, kind, _importance(fact)))
    return list(found.values())


_PASSING = frozenset({"plans", "works_on", "learning", "wants"})
"""What is about now rather than about the person."""


def _importance(fact: Fact) -> float:
    weight = 0.9 if fact.predicate in ("name", "allergic_to", "condition") else 0.7 if fact.group == "profile" else 0.55
    return round(weight * fact.confidence, 2)
