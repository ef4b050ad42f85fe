"""Sentences for measuring speed: as long and as varied as what people say, and the same on every run."""

from __future__ import annotations

import random
from collections.abc import Iterator

_WHO = [
    "my sister",
    "our neighbour",
    "the plumber",
    "Ann",
    "Victor",
    "a colleague",
    "my old teacher",
    "the landlord",
    "Mira",
    "the vet",
]
_DID = [
    "told me about",
    "finally repaired",
    "wants to sell",
    "forgot",
    "borrowed",
    "is afraid of",
    "keeps talking about",
    "bought",
    "painted",
    "lost",
]
_WHAT = [
    "the red bicycle",
    "a cottage near the lake",
    "the piano lessons",
    "three old maps",
    "her passport",
    "the garden fence",
    "a sourdough starter",
    "the violin",
    "our tent",
    "two concert tickets",
    "a telescope",
    "the blue kayak",
    "his camera",
    "the greenhouse",
    "a chess set",
]
_WHEN = [
    "last Tuesday",
    "before breakfast",
    "in the spring",
    "two weeks ago",
    "on the way home",
    "after the storm",
    "at noon",
]
_WHY = [
    "because the weather had turned",
    "and everybody laughed",
    "which nobody had expected",
    "although it was far too expensive",
    "so we changed our plans",
    "and I have to call back",
    "since the old one broke",
    "but I am not sure it matters",
]
_SYLLABLES = ["ba", "ko", "li", "mu", "ra", "sen", "tor", "vi", "zan", "pel", "dri", "fo", "gu", "hal", "ist", "jor"]


def sentences(count: int, seed: int = 7) -> Iterator[str]:
    """`count` sentences of 15 to 25 words, each with a name and a number of its own."""
    draw = random.Random(seed)  # noqa: S311  # repeatable, not secret
    for number in range(count):
        place = "".join(draw.choices(_SYLLABLES, k=3)).capitalize()
        yield (
            f"{draw.choice(_WHO)} {draw.choice(_DID)} {draw.choice(_WHAT)} in {place} {draw.choice(_WHEN)}, "
            f"{draw.choice(_WHY)}; it was number {number} on the list and cost {draw.randrange(5, 900)} euros."
        )


def questions(count: int, seed: int = 11) -> Iterator[str]:
    """`count` questions about such sentences."""
    draw = random.Random(seed)  # noqa: S311  # repeatable, not secret
    for _ in range(count):
        yield f"What did {draw.choice(_WHO)} say about {draw.choice(_WHAT)} {draw.choice(_WHEN)}?"
