"""Facts in English text: sentences, clauses, subjects, and what verb phrases say of them.

Every clause is judged on its own: a question, wish, condition or report gives nothing. What is left is matched from its
first word on, so that a pattern never finds something inside a longer thought.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from memoryos_server.domain.memory.extraction import sentences
from memoryos_server.domain.memory.extraction.dates import Span
from memoryos_server.domain.memory.extraction.english_clauses import QUESTION, Clause, clauses, stated
from memoryos_server.domain.memory.extraction.english_denials import DENIABLE, denial, is_whole, taken
from memoryos_server.domain.memory.extraction.english_idioms import ENDINGS, MINE, SAID
from memoryos_server.domain.memory.extraction.english_values import clean, parts
from memoryos_server.domain.memory.extraction.english_verbs import VERBS
from memoryos_server.domain.memory.extraction.english_words import LISTED, Saying
from memoryos_server.domain.memory.extraction.model import ASSERTED, ENDED, SPEAKER, Fact
from memoryos_server.domain.memory.extraction.text import TASK, Sentence, lower, masked, words

LONGEST_CLAUSE = 300
"""A longer clause is no plain statement, in characters."""

_ME = re.compile(r"(?:i|the user|user|we)(?=[ '])\s*")
_LEAD = re.compile(
    r"(?:(?:well|so|oh|ah|hey|hi|hello|yes|yeah|yep|no|nope|and|but|because|also|plus|actually|"
    r"honestly|by the way|btw|fyi|for the record|"
    r"to be honest|in fact|as a matter of fact|as you know|you know|i mean|just so you know|fun fact|"
    r"anyway|anyways|currently|nowadays|these days|"
    r"right now|now|at the moment|lately|recently|personally|in general|generally|correction|sorry|"
    r"wait|update|finally|luckily|unfortunately|sadly|"
    r"thankfully|speaking of which|as for me|for me|then|ok|okay|sure|haha|lol|wow|thanks|thank you|"
    r"remember|remember that|note|note that|please remember|"
    r"please remember that|don't forget|don't forget that|keep in mind|keep in mind that|guess what|"
    r"good news|big news|of course|"
    r"i forgot to mention(?: that)?|i should mention(?: that)?|did i mention(?: that)?|i told you"
    r"(?: that)?|as i said|like i said|let me introduce myself|"
    r"it turns out(?: that)?|today|yesterday|tomorrow)\b[,:!.]?\s*|[-*•·]\s+|\d+[.)]\s+)+"
)
_SAYS = re.compile(
    r"(?!i\b|my name).{0,40}?\b(?:said|says|say|told|tells|asked|asks|thinks|think|thought|believes|"
    r"believe|claims|claimed|wrote|writes|"
    r"joked|jokes|heard|suggested|suggests|wonder|wondered)\b"
)
_HEDGE = re.compile(r"(?:i think|i guess|i believe|i suppose|i feel like|i'd say)(?: that)?\s+")
_DOUBT = re.compile(
    r"i (?:don't|do not) (?:think|believe|know)|i doubt|i (?:said|told|asked|wonder|hope|dreamt|"
    r"dreamed|wrote|lied|bet|heard|assume)\b"
)

_REL = (
    r"sister|brother|mother|mom|mum|father|dad|parents|wife|husband|girlfriend|boyfriend|fiancée|"
    r"fiancé|fiancee|fiance|partner|son|daughter|"
    r"cousin|uncle|aunt|grandmother|grandma|grandfather|grandpa|nephew|niece|mother-in-law|"
    r"father-in-law|brother-in-law|sister-in-law|"
    r"stepson|stepdaughter|twin|kid|baby"
)
_FRIEND = (
    r"friend|best friend|roommate|flatmate|colleague|coworker|co-worker|boss|neighbor|neighbour|"
    r"teacher|mentor|classmate|manager|teammate"
)
_PET = (
    r"dog|cat|puppy|kitten|rabbit|bunny|hamster|parrot|bird|turtle|tortoise|horse|snake|guinea pig|"
    r"goldfish|fish|lizard|pup"
)
_OTHER = re.compile(
    r"(?:my|our) (?P<adj>(?:older|younger|elder|little|big|twin|late|old|new|oldest|youngest|eldest|"
    r"middle|best|close|good|dear|lovely)\s+)?"
    rf"(?P<rel>{_REL}|{_FRIEND}|{_PET})(?:,? (?P<name>[^\W\d_][\w'-]*))?(?P<end>,? )(?=[a-z'])"
)
_CALLED = re.compile(
    rf"(?:my|our) (?:\w+ )?(?P<rel>{_REL}|{_FRIEND}|{_PET})(?:['’]s name is|(?: is|['’]s) (?:called|named)) (?=\w)"
)
_PARTNERS = words("wife husband girlfriend boyfriend partner fiancé fiancée fiance fiancee")
_NAMED = re.compile(
    r"(?P<name>[^\W\d_][\w-]+(?: [^\W\d_][\w-]+)?) (?=(?:lives|works (?:at|as|for)|speaks|is allergic|"
    r"is from|is married|was born|moved to|hates|prefers)\b)"
)
_CAPITALISED = re.compile(r"[^\W\d_a-z][\w'’-]*(?: [A-Z][\w'’-]*)?")
_NOT_NAMES = words(
    """
    this that it there here he she they we you who what everyone everybody someone nobody people the a
    an one which something everything and but also now my our his her their your its
    """
)
_NEGATED = re.compile(
    r"(?:do not|don't|dont|does not|doesn't|did not|didn't|am not|'m not|is not|isn't|was not|wasn't|"
    r"have not|haven't|'ve not|has not|hasn't|"
    r"have never|'ve never|has never|had never|never|can't|cannot|can not|won't|will not|wouldn't|"
    r"would not|couldn't|shouldn't|ain't|hardly|barely|rarely|"
    r"have no|'ve no|has no|had no|am no|'m no|seldom|neither|nor)\b"
)
_ANY_MORE = re.compile(r"\s*,?\s*\b(?:any ?more|any longer)\b")
_NO_LONGER = re.compile(r"(?P<be>am|'m|is|have|has)?\s*\bno longer\s+")
_MODAL = re.compile(
    r"(?:may|could|would|'d|should|must|shall|can(?! speak| play)|might|'ll|will|ought|had better|"
    r"'d better|tried|try|almost|nearly)\b"
)
_USED_TO = re.compile(r"used to (?:be (?=in |an? |married|single|vegan|vegetarian))?")
_ADVERBS = re.compile(
    r"(?:really|just|also|still|actually|currently|now|already|absolutely|recently|only|always|"
    r"usually|mostly|mainly|honestly|definitely|"
    r"personally|truly|even|finally|officially|originally|especially|particularly|simply|normally|"
    r"generally|often|sometimes|very much|"
    r"both|all|kinda|kind of|sort of|totally|genuinely|quite|proudly|happily|newly|then|suddenly|"
    r"eventually|myself)\s+"
)
_PREPOSITION = re.compile(
    r"\s+(?:in|on|at|since|from|by|until|till|around|about|during|before|after|back in|early|late|mid)\s*$"
)
_INTRODUCES = re.compile(
    r"\b(?:hi|hello|hey|nice to meet|pleased to meet|greetings|good (?:morning|evening|afternoon))\b"
)
_HEDGED = re.compile(r"\b(?:kinda|kind of|sort of|sometimes|i think|i guess|i believe|i suppose|i feel like)\b")
_EITHER = re.compile(r",? n?or ")
_DIED = re.compile(r"(?:has |just |recently )*(?:died|passed away|passed)\b")


def facts(text: str, spans: Sequence[Span], said_at: datetime, speaker: str) -> Iterator[Fact]:
    """The facts of an English text, in its order."""
    plain = masked(text)
    low = lower(plain)
    whole = Sentence.split(low)
    starts = [span.offset for span in spans]
    for i, sentence in enumerate(whole):
        if TASK.search(low, sentence.begin, sentence.end):
            return  # what follows is the text of the task, not what the user says of themselves
        if not stated(low, whole, i):
            continue
        subject = ""
        for clause in clauses(low, sentence):
            if clause.end - clause.begin > LONGEST_CLAUSE:
                subject = ""
                continue
            near = spans[bisect_left(starts, clause.begin) : bisect_left(starts, clause.end)]
            reader = _Reader(text, low, near, said_at, speaker)
            if reader.blocked(clause):
                break
            found, subject = reader.read(clause, subject)
            yield from found


class _Reader:
    """Reads one clause."""

    def __init__(self, text: str, low: str, spans: Sequence[Span], said_at: datetime, speaker: str) -> None:
        self._text = text
        self._low = low
        self._spans = spans
        self._said_at = said_at
        self._speaker = speaker.casefold()

    def blocked(self, clause: Clause) -> bool:
        """Whether this clause makes what follows a report of somebody else's words, or a doubt."""
        at = self._skip(clause.begin, clause.end)
        return _SAYS.match(self._low, at, clause.end) is not None or _DOUBT.match(self._low, at, clause.end) is not None

    def read(self, clause: Clause, before: str) -> tuple[list[Fact], str]:
        """The facts of a clause and its subject, "" if that is nobody known."""
        low = self._low
        at = self._skip(clause.begin, clause.end)
        if hedge := _HEDGE.match(low, at, clause.end):
            at = hedge.end()
        if QUESTION.match(low, at, clause.end) and not clause.carried:
            return [], ""
        if clause.carried:
            return (self._phrase(before, at, clause) if before else []), before
        for saying in MINE:
            if match := saying.pattern.match(low, at, clause.end):
                return self._say(SPEAKER, saying, match, clause, ended=saying.ended), SPEAKER
        if match := _ME.match(low, at, clause.end):
            return self._phrase(SPEAKER, match.end(), clause), SPEAKER
        return self._other(clause, at)

    def _skip(self, at: int, end: int) -> int:
        """Where the clause says something: behind interjections, times and adverbs."""
        while True:
            start = at
            while at < end and self._low[at] in " ,\"'*\t":
                at += 1
            if lead := _LEAD.match(self._low, at, end):
                at = lead.end()
            for span in self._spans:
                if at <= span.offset <= at + 4 and self._low[at : span.offset].strip() in ("", "in", "on", "by", "the"):
                    at = span.offset + len(span.text)
            if at == start:
                return at

    def _other(self, clause: Clause, at: int) -> tuple[list[Fact], str]:
        """What is said of somebody else."""
        if (called := _CALLED.match(self._low, at, clause.end)) and (
            capitals := _CAPITALISED.match(self._text, called.end(), clause.end)
        ):
            return [self._acquaintance(called["rel"], capitals[0], clause)], f"{called['rel']} {capitals[0]}"
        match = _OTHER.match(self._low, at, clause.end)
        if match is None:
            named = _NAMED.match(self._low, at, clause.end)
            if named is None:
                return [], ""
            name = self._text[named.start("name") : named.end("name")]
            words = name.split()
            if not all(w[0].isupper() for w in words) or words[0].casefold() in _NOT_NAMES:
                return [], ""
            subject = SPEAKER if name.casefold() == self._speaker else name
            return self._phrase(subject, named.end(), clause), subject
        kin = self._text[match.start("rel") : match.end("rel")]
        name, behind = "", match.start("end")
        if match["name"] and self._text[match.start("name")].isupper():
            name = self._text[match.start("name") : match.end("name")].removesuffix("'s")
        elif match["name"]:
            behind = match.end("rel")
        subject = f"{kin} {name}".strip()
        found: list[Fact] = []
        start = behind
        while start < clause.end and self._low[start] in " ,":
            start += 1
        late = (match["adj"] or "").strip() == "late" or _DIED.match(self._low, start, clause.end) is not None
        if (name and not late) or (late and re.fullmatch(_PET, kin.casefold())):
            found.append(self._acquaintance(kin, name, clause, ended=late))
        if self._low.startswith("'s ", behind):
            return found, ""  # "my sister's house": of a thing of theirs
        if late:
            return found, ""
        return [*found, *self._phrase(subject, start, clause)], subject

    def _acquaintance(self, kin: str, name: str, clause: Clause, *, ended: bool = False) -> Fact:
        """That the speaker has such a relative, friend or animal."""
        folded = kin.casefold()
        predicate = "has_relative" if re.fullmatch(_REL, folded) else "has_friend"
        predicate = "has_pet" if re.fullmatch(_PET, folded) else "partner" if folded in _PARTNERS else predicate
        return self._fact(SPEAKER, predicate, f"{kin} {name}".strip(), 0.9, clause, ended=ended)

    def _phrase(self, subject: str, at: int, clause: Clause) -> list[Fact]:
        """What a verb phrase says of a subject."""
        low, end = self._low, clause.end
        ended = False
        at = self._adverbs(at, end)
        if match := _NO_LONGER.match(low, at, end):
            ended = True
            phrase = f"{match['be'] or ''} " if match["be"] else ""
            over = self._verbs(subject, at, clause, ended=True, lead=phrase, skip=match.end())
            return over or self._untaken(subject, match.end(), clause.end, clause)
        more = _ANY_MORE.search(low, at, end)
        negated = _NEGATED.match(low, at, end)
        if negated:
            if more:
                be = negated[0] in ("am not", "'m not", "is not", "isn't")
                over = self._verbs(
                    subject,
                    at,
                    Clause(clause.begin, more.start()),
                    ended=True,
                    lead="am " if be else "",
                    skip=negated.end(),
                )
                return over or self._untaken(subject, negated.end(), more.start(), clause)
            for saying in SAID:
                if match := saying.pattern.match(low, at, end):
                    return self._say(subject, saying, match, clause, ended=False)
            return self._denied(subject, at, clause)
        if _MODAL.match(low, at, end):
            for saying in SAID:
                if saying.modal and (match := saying.pattern.match(low, at, end)):
                    return self._say(subject, saying, match, clause, ended=False)
            return []
        if match := _USED_TO.match(low, at, end):
            return self._verbs(
                subject, at, clause, ended=True, lead="am " if "be" in match[0] else "", skip=match.end()
            )
        return self._verbs(subject, at, clause, ended=ended)

    def _denied(self, subject: str, at: int, clause: Clause) -> list[Fact]:
        """What a negated verb phrase denies, if it denies all of it."""
        denied = None if self._spans else denial(self._low, at, clause)
        if denied is None:
            return []
        lead, begin, end = denied
        joined, shift = lead + self._low[begin:end], begin - len(lead)
        for saying in VERBS:
            match = saying.pattern.match(joined)
            if match is None:
                continue
            if saying.predicate not in DENIABLE or not saying.captures:
                return []
            if match.end() < len(joined):
                return []
            start, stop = max(begin, match.start("v") + shift), match.end("v") + shift
            pieces = _EITHER.split(self._text[start:stop]) if saying.kind in LISTED else [self._text[start:stop]]
            values = [self._whole(piece, saying.kind) for piece in pieces]
            if not all(values):
                return []
            return [self._denial(subject, saying.predicate, value, saying.confidence, clause) for value in values]
        return []

    def _whole(self, piece: str, kind: str) -> str:
        """The one value that a piece of the text is, "" if it is more or less than that."""
        values = parts(piece, kind) if kind in LISTED else [clean(piece, kind)]
        return values[0] if len(values) == 1 and is_whole(piece, values[0]) else ""

    def _untaken(self, subject: str, at: int, end: int, clause: Clause) -> list[Fact]:
        """What is taken no more, as in "I don't drink coffee anymore": whether it was liked or used before, nobody says."""
        place = taken(self._low, at, end, clause)
        if place is None or self._spans:
            return []
        values = [self._whole(piece, "thing") for piece in _EITHER.split(self._text[place[0] : place[1]])]
        return [
            self._denial(subject, predicate, value, 0.85, clause)
            for value in values
            if value
            for predicate in ("likes", "uses")
        ]

    def _denial(self, subject: str, predicate: str, value: str, sure: float, clause: Clause) -> Fact:
        return replace(self._fact(subject, predicate, value, sure, clause, ended=True), denied=True)

    def _adverbs(self, at: int, end: int) -> int:
        while at < end and (match := _ADVERBS.match(self._low, at, end)):
            at = match.end()
        return at

    def _verbs(
        self, subject: str, at: int, clause: Clause, *, ended: bool, lead: str = "", skip: int | None = None
    ) -> list[Fact]:
        low, end = self._low, clause.end
        skip = at if skip is None else skip
        skip = self._adverbs(skip + (low[skip : skip + 1] == " "), end)
        if lead or skip != at:
            # The phrase is put together anew; its values are still found by their place from its end.
            joined = lead + low[skip:end]
            shift = skip - len(lead)
            for saying in VERBS:
                if match := saying.pattern.match(joined):
                    return self._say(subject, saying, match, clause, ended=ended or saying.ended, shift=shift)
            return []
        for saying in (*ENDINGS, *VERBS):
            if match := saying.pattern.match(low, at, end):
                if saying.kind == "own_name" and (subject != SPEAKER or not _INTRODUCES.search(low, 0, 200)):
                    continue  # "I'm Anna" is a name where people are introduced, else "I'm Team Red"
                if saying.predicate == "switch":
                    return self._switch(subject, match, clause)
                return self._say(subject, saying, match, clause, ended=ended or saying.ended)
        return []

    def _switch(self, subject: str, match: re.Match[str], clause: Clause) -> list[Fact]:
        """From one thing to another."""
        old, new = clean(self._text[match.start("old") : match.end("old")], "thing"), self._value(match, "thing", 0)
        found = [self._fact(subject, "uses", old, 0.85, clause, ended=True)] if old else []
        return [*found, *([self._fact(subject, "uses", new, 0.85, clause)] if new else [])]

    def _value(self, match: re.Match[str], kind: str, shift: int) -> str:
        begin, end = match.start("v") + shift, match.end("v") + shift
        return clean(self._text[begin : end if kind == "day" else self._upto(begin, end)], kind)

    def _upto(self, begin: int, end: int) -> int:
        """Where a value ends at the latest: before the first time that is named, and its preposition."""
        cut = min([span.offset for span in self._spans if begin <= span.offset < end], default=end)
        if cut < end and (loose := _PREPOSITION.search(self._low, begin, cut)):
            return loose.start()
        return cut

    def _say(
        self, subject: str, saying: Saying, match: re.Match[str], clause: Clause, *, ended: bool, shift: int = 0
    ) -> list[Fact]:
        sure = saying.confidence
        if _HEDGED.search(
            self._low, clause.begin, min(clause.end, match.start("v") + shift if saying.captures else clause.end)
        ):
            sure = round(sure * 0.65, 2)
        predicate = saying.predicate
        if not saying.captures:
            found = [self._fact(subject, predicate, saying.value, sure, clause, ended=ended)]
            if saying.also:
                found.append(self._fact(subject, saying.also[0], saying.also[1], sure, clause))
            return found
        if predicate == "favorite_":
            predicate += re.sub(r"[^a-z]+", "_", match["k"].strip()).replace("colour", "color")
        if saying.kind in LISTED:
            begin, end = match.start("v") + shift, match.end("v") + shift
            values = parts(self._text[begin : self._upto(begin, end)], saying.kind)
        else:
            value = self._value(match, saying.kind, shift)
            values = [value] if value else []
        return [self._fact(subject, predicate, value, sure, clause, ended=ended) for value in values]

    def _fact(
        self, subject: str, predicate: str, value: str, sure: float, clause: Clause, *, ended: bool = False
    ) -> Fact:
        begins, ends = self._times(ended=ended or predicate in ("visited", "watched", "read"), predicate=predicate)
        return Fact(
            subject,
            predicate,
            value,
            sentences.english(subject, predicate, value, ended=ended),
            sure,
            ENDED if ended else ASSERTED,
            begins,
            ends,
            self._text[clause.begin : clause.end].strip(),
        )

    def _times(self, *, ended: bool, predicate: str) -> tuple[datetime | None, datetime | None]:
        """From when and until when, as the clause's times say."""
        if predicate in ("name", "age", "birthday", "from", "has_relative", "has_friend", "partner") or not self._spans:
            return None, None
        span = self._spans[0]
        if predicate in ("visited", "watched", "read"):
            return span.start, span.end
        if span.relation == "before":
            return None, span.start
        if span.relation == "since":
            return span.start, None
        if ended:
            return None, (span.start if span.granularity in ("day", "part", "hour") else span.end)
        return span.start, None
