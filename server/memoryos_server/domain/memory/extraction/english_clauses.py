"""Clauses of English sentences, and which sentences state anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memoryos_server.domain.memory.extraction.text import Sentence

_UNREAL = re.compile(
    r"\b(?:if|unless|wish|wished|imagine|imagining|suppose|supposing|pretend|pretending|hypothetically|as though|"
    r"whether|would have|could have|should have|would be|could be|might|maybe|perhaps|probably|possibly|"
    r"in my dreams?|dreamt|dreamed|in (?:the|this|that|my) (?:book|novel|story|movie|film|game|show|play|dream)|"
    r"my character|let's say|say that|what if|for example|e\.g\.|for instance|not true|untrue|a lie|a rumou?r|just kidding|joking|lol jk)\b"
)
_KIDDING = re.compile(r"(?:i'?m |i was )?(?:just |only )?(?:kidding|joking)\b|jk\b|not really\b|psych\b")
QUESTION = re.compile(
    r"(?:and |but |so |or |well |hey |also )?(?:do|does|did|is|are|am|was|were|have|has|had|can|could|"
    r"should|would|will|"
    r"shall|may|what|what's|when|where|who|whose|whom|why|which|how|how's|isn't|aren't|don't|doesn't|"
    r"didn't|won't|wouldn't|"
    r"can't|couldn't|shouldn't|haven't|hasn't|any)\b"
)
_WHO = (
    r"(?:i|i'm|i've|i'd|i'll|my|mine|our|we|we're|we've|we'll|he|he's|she|she's|they|they're|it|it's|"
    r"its|you|you're|you've|your|this|that|that's|there|there's|everyone|people|his|her|their)"
)
# Blanks are read from their first one only, else many of them would take the square of their number.
_BLANKS = r"(?:(?<!\s)|(?<=\n))\s+"
_CUT = re.compile(
    rf"(?:{_BLANKS})?[;()]\s*|:\s+|{_BLANKS}[—–-]+\s+|(?<=\w)-+\s+|—|"
    rf"(?:,\s+|{_BLANKS})(?:and|but|so|because|'?cause|cuz|although|though|while|plus|however|yet|or|since|as|where|"
    rf"when|that)\s+(?={_WHO}\b)|"
    rf",\s+(?={_WHO}\b|(?:but|which|who|so|because|although|though|where|when|while)\b)"
)
_ALSO = re.compile(
    rf"(?:,\s+|{_BLANKS})(?:and|but)\s+(?:(?:also|now|currently|really|then|have|i|recently|just)\s+)*(?=(?:live|"
    r"work|study|speak|love|like|hate|dislike|enjoy|"
    r"prefer|own|use|am|moved|adopted|can't stand|don't|no longer|play|quit|got married|got engaged|"
    r"started|prefers|likes|loves|hates|works|lives|uses|owns|speaks|enjoys|dislikes|"
    r"plays(?= \w))\b)"
)
_STATES = re.compile(
    r"(?:^|[\s,.!?])(?:i|we|user|my \w+(?: \w+)?)(?:'m|'ve| (?:am|have|is|was|really|also|just|still|"
    r"now|currently)){0,3} ?(?:an? |in |from |lives?|works?|lik|lov|enjoy|hat|"
    r"prefer|speak|stud|us|own|mov|adopt|got|play|don't|no |quit|vegan|vegetarian|allergic|married|single|\d)"
)


@dataclass(frozen=True, slots=True)
class Clause:
    """Part of a sentence, from `begin` to `end` in the text; `carried`: its subject is the one of the clause before."""

    begin: int
    end: int
    carried: bool = False


def stated(low: str, whole: Sequence[Sentence], i: int) -> bool:
    """Whether a sentence is meant: no wish, condition, doubt or invention, and not taken back by the one behind it."""
    if _UNREAL.search(low, whole[i].begin, whole[i].end):
        return False
    return i + 1 == len(whole) or not _KIDDING.match(low[whole[i + 1].begin : whole[i + 1].end].lstrip())


def clauses(low: str, sentence: Sentence) -> Iterator[Clause]:
    """The clauses of a sentence; of a question, those before the one that asks."""
    cuts = [(m.start(), m.end(), False) for m in _CUT.finditer(low, sentence.begin, sentence.end)]
    cuts += [(m.start(), m.end(), True) for m in _ALSO.finditer(low, sentence.begin, sentence.end)]
    cuts.sort()
    clauses: list[Clause] = []
    begin, carried = sentence.begin, False
    for start, end, also in cuts:
        if start < begin:
            continue
        if also and (" to " in low[begin:start] or not _STATES.search(low, begin, start)):
            continue  # "I like to live and work in Berlin", "of hope and love"
        clauses.append(Clause(begin, start, carried))
        begin, carried = end, also
    clauses.append(Clause(begin, sentence.end, carried))
    if sentence.asks:
        # "I live in Rome, do you know it?" states something; "Should I move to Rome?" and "I live in Rome?" do not.
        if len(clauses) < 2 or not re.match(rf"(?:{QUESTION.pattern})|you\b", low[clauses[-1].begin : clauses[-1].end]):
            asked = re.search(
                r",\s+(?:and |but |so )?(?:do|does|did|is|are|can|could|what|where|how|which|any|who|have)\b",
                low[sentence.begin : sentence.end],
            )
            if asked is None or len(clauses) > 1:
                return
            clauses = [Clause(sentence.begin, sentence.begin + asked.start()), clauses[-1]]
        clauses.pop()
    yield from clauses
