"""Plain denials in English: "I don't live in Rome", "I'm not allergic to nuts after all".

Only what denies all of a plain statement counts: nothing stands between its "not" and the verb, and nothing but a few words
like "after all" stands behind its value. So "I don't just work at Acme" and "I don't live in Rome all year" deny nothing.
"""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.english_clauses import Clause
from memoryos_server.domain.memory.extraction.text import words

DENIABLE = words(
    """
    lives_in from nationality works_at has_role studies_at studies relationship_status partner diet trait likes hobby
    speaks skill allergic_to condition has_relative has_child has_pet uses owns learning plans wants works_on
    """
)
"""What a denial can be about. What was done stays done, and a name or number is corrected by the right one."""

_NO = re.compile(
    r"(?:(?P<do>do not|don't|dont|does not|doesn't)|(?P<be>am not|'m not|is not|isn't)|"
    r"(?P<got>have not|haven't|'ve not|has not|hasn't)(?= got )|(?P<no>have no|'ve no|has no)) "
    r"(?:(?:actually|currently|in fact|now) )?"
)
_NOT_ALL = re.compile(
    r"(?:really|just|also|still|already|absolutely|recently|only|mostly|mainly|very|both|quite|truly|totally|"
    r"officially|originally|actively|super|so|strictly|fully|strict|lifelong|severely|mildly|highly|deathly|happily|"
    r"newly|fluently|pretty|rather|naturally|exactly|a bit|an? (?:severe|mild|bad|strict)|full[- ]time|part[- ]time|"
    r"remotely)\b|(?:speak|speaks) (?:fluent|some|a little|a bit|both|basic|good)\b"
)
_PARTLY = re.compile(
    r"\b(?:always|usually|mostly|mainly|often|sometimes|generally|normally|especially|particularly|simply|even|"
    r"just|only|originally|both|all|kinda|kind of|sort of|i think|i guess|i believe|i suppose|i feel like|i'd say|"
    r"then|suddenly|eventually)\b"
)
_TAIL = re.compile(
    r"[\s,]*(?:\b(?:after all|at all|either|now|currently|actually|though|at the moment|these days|right now|"
    r"by the way|btw|in fact|as it turns out|it turns out|you know|any ?more|any longer|anyway)\b[\s,]*)+$"
)
_BEFORE_VALUE = ("", "a ", "an ", "the ", "my ", "our ", "be a ", "be an ")
_PART_OF = re.compile(r"\b(?:all|every|full|part|half|most|much|alone|just|only|yet|myself|any|both)\b", re.IGNORECASE)
_LEADS_ON = re.compile(r"\b(?:that|when|where|or|while|whenever|before|after|until|than|like) $")
_TAKEN_BACK = re.compile(
    r"[\s,]*(?:(?:because|'?cause|cuz|since|as|when|where|while|unless|until|that|or|yet)\b|"
    r"(?:do|does|am|are|is|aren't) (?:i|he|she|we|they)\b|but (?:only|just|also|sometimes|often)\b)"
)
_TAKES = re.compile(r"(?:drink|drinks|eat|eats|smoke|smokes|use|uses) (?P<v>[\w' -]{2,40})$")


def denial(low: str, at: int, clause: Clause) -> tuple[str, int, int] | None:
    """What a clause denies, if it does so plainly: the words to put before the verb, where that begins, and where it ends.

    Args:
        low: The text in lower case.
        at: Where the negation begins.
        clause: The clause.
    """
    match = _NO.match(low, at, clause.end)
    if match is None or _PARTLY.search(low, clause.begin, at) or _part_of_more(low, clause):
        return None
    if _TAKEN_BACK.match(low, clause.end) or _NOT_ALL.match(low, match.end()):
        return None
    end = clause.end
    if tail := _TAIL.search(low, match.end(), end):
        end = tail.start()
    while end > match.end() and low[end - 1] in " ,\"'*":
        end -= 1
    third = match[0].startswith(("is", "has"))
    lead = ""
    if match["be"]:
        lead = "is " if third else "am "
    elif match["got"]:
        lead = "has " if third else "have "
    elif match["no"]:
        lead = "has a " if third else "have a "
    return lead, match.end(), end


def _part_of_more(low: str, clause: Clause) -> bool:
    """Whether another clause leads to this one, so that it is part of a longer thought: "I hate that I don't have a dog"."""
    return _LEADS_ON.search(low, max(0, clause.begin - 12), clause.begin) is not None


def taken(low: str, at: int, end: int, clause: Clause) -> tuple[int, int] | None:
    """Where what somebody drinks, eats, smokes or uses stands, of a verb phrase that is denied or over."""
    if _PARTLY.search(low, clause.begin, clause.end) or _part_of_more(low, clause):
        return None
    match = _TAKES.match(low, at + (low[at : at + 1] == " "), end)
    return match.span("v") if match else None


def is_whole(piece: str, value: str) -> bool:
    """Whether a piece of the text is that value and nothing more."""
    return piece.casefold().removesuffix(value.casefold()) in _BEFORE_VALUE and _PART_OF.search(piece) is None
