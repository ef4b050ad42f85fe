"""`python -m bench.junk DIRECTORY`: what the rules take from conversations, and how much of it is junk by automatic checks.

Reads the same sets as `bench.recall`. Prints, for each: facts per hundred turns, facts that fail a check that needs no judgement
(from a question, empty, a pronoun, too long, said twice), turns judged junk, and how many of those are evidence of a question. `--sample N`
prints a random sample of facts with their quotes, for judging by hand.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.recall.sets import Line, available, load
from memoryos_server.domain.memory.extraction import Fact, extract, judge
from memoryos_server.tools.words import Words

MOST_WORDS = 12
_PRONOUN = re.compile(
    r"(?:it|that|this|them|those|these|you|me|him|her|here|there|one|something)|[这那][个些]?|它们?|你们?|他们?|她们?",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Tally:
    """What a set gave.

    Attributes:
        turns: Turns that were read.
        facts: Every fact with the turn it is from.
        failed: Check -> facts that fail it.
        junk: Reason -> turns judged junk.
        lost: Evidence turns judged junk.
        evidence: Turns that are evidence of a question.
        seconds: Time spent.
    """

    turns: int = 0
    facts: list[tuple[Line, Fact]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    junk: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[str, Line]] = field(default_factory=list)
    evidence: int = 0
    seconds: float = 0.0


def checks(line: Line, fact: Fact, seen: set[tuple[str, str, str, str]]) -> list[str]:
    """The checks that a fact fails; `seen` are the facts of the same turn."""
    failed = []
    at = line.text.find(fact.quote)
    behind = line.text[at + len(fact.quote) :].lstrip(" \"'”」)") if at >= 0 else ""
    if behind[:1] in ("?", "？"):
        failed.append("question")
    if not fact.value.strip() and not fact.ended:
        failed.append("empty")
    if _PRONOUN.fullmatch(fact.value.strip()):
        failed.append("pronoun")
    if len(fact.value.split()) > MOST_WORDS or len(fact.value) > 80:
        failed.append("long")
    key = (fact.subject, fact.predicate, fact.value.casefold(), fact.polarity)
    if key in seen:
        failed.append("twice")
    seen.add(key)
    if line.role != "user":
        failed.append("assistant")
    return failed


def measure(directory: Path, name: str) -> Tally:
    fold = Words().fold
    tally = Tally()
    for conversation in load(directory, name):
        evidence = {e for question in conversation.questions for e in question.evidence}
        for line in conversation.lines:
            start = time.perf_counter()
            reason = judge(line.text, line.role)
            said = extract(line.text, speaker=line.name, role=line.role, said_at=line.time, fold=fold)
            tally.seconds += time.perf_counter() - start
            tally.turns += 1
            seen: set[tuple[str, str, str, str]] = set()
            for fact in said.facts:
                tally.facts.append((line, fact))
                tally.failed.update(checks(line, fact, seen))
            # Of a pair, what the user says is what a question is about.
            counts = (line.id.rsplit("/", 1)[0] if conversation.pairs else line.id) in evidence and line.role == "user"
            tally.evidence += counts
            if reason:
                tally.junk[reason] += 1
                if counts:
                    tally.lost.append((reason, line))
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.junk", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the sets lie")
    parser.add_argument("--sample", type=int, default=0, help="print so many facts of each set, to judge by hand")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--lost", action="store_true", help="print the evidence turns that are judged junk")
    chosen = parser.parse_args()
    names = available(chosen.directory)
    if not names:
        print(f"no sets in {chosen.directory}: nothing to measure", file=sys.stderr)
        return 0
    for name in names:
        tally = measure(chosen.directory, name)
        failed = sum(tally.failed.values())
        print(
            f"{name}: {tally.turns} turns, {len(tally.facts)} facts "
            f"({100 * len(tally.facts) / tally.turns:.1f} per 100 turns), {failed} fail a check {dict(tally.failed)}; "
            f"junk turns {sum(tally.junk.values())} {dict(tally.junk)}; "
            f"evidence judged junk {len(tally.lost)} of {tally.evidence}; {1e3 * tally.seconds / tally.turns:.2f} ms a turn"
        )
        if chosen.lost:
            for reason, line in tally.lost:
                print(f"    {reason}: {line.text!r}")
        picked = random.Random(chosen.seed).sample(tally.facts, min(chosen.sample, len(tally.facts)))  # noqa: S311 - a sample, no secret
        for _, fact in picked:
            dates = f" {fact.valid_from:%Y-%m-%d}" if fact.valid_from else ""
            print(f"    [{fact.subject}|{fact.predicate}|{fact.polarity}{dates}] {fact.value}   <- {fact.quote!r}")
        if picked:
            print("    predicates:", dict(Counter(fact.predicate for _, fact in tally.facts).most_common()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
