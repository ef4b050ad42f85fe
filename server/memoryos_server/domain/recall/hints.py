"""Small numbers of a turn's form that help to rank it: whether it asks, how much it says, whether it has a date.

They are kept readable beside the sealed text, so each is about form alone and no more than a few bits.
"""

from __future__ import annotations

import math
import re
from itertools import islice

from memoryos_server.domain.ports import Turn

HINTS = ("asks", "length", "time", "number", "names", "first_person", "opening", "assistant")
"""What each hint says, in order: 0..1, but `length`, which is the logarithm of the number of terms."""

_CAPTION = "\n[image: "
_READ = 4_000  # characters; of a longer text the beginning stands for all of it

_TIME = re.compile(
    r"\b(yesterday|today|tonight|tomorrow|ago|last|next|weeks?|weekend|months?|years?|monday|tuesday|wednesday|thursday"
    r"|friday|saturday|sunday|january|february|march|april|may|june|july|august|september|october|november|december"
    r"|recently|since|morning|night|summer|winter|spring|fall|\d{4})\b|昨|今天|明天|上周|下周|上个月|去年|今年|明年|\d+[月日]"
)
_NUMBER = re.compile(
    r"\d|\b(two|three|four|five|six|seven|eight|nine|ten|dozen|couple|few|several|once|twice|first|second|third)\b"
    r"|[一二两三四五六七八九十]"
)
_FIRST_PERSON = re.compile(r"\b(i|i'm|i've|i'd|i'll|my|me|mine|we|our|we're|we've)\b|我")
_OPENING = re.compile(
    r"(thanks|thank you|wow|hey|hi|hello|that's|sounds|congrats|awesome|great|cool|nice|yeah|yes|no|absolutely"
    r"|definitely|sure)\b|(好的|谢谢|不客气|你好|当然)"
)
_NAME = re.compile(r"(?<=[a-z,;:'’\"] )(?!I\b)[A-Z][a-zA-Z]+")
_QUOTE = re.compile(r'["“”《「]')
_NAMES = 3


def hints(turn: Turn, folded: str, terms: int) -> tuple[float, ...]:
    """The hints of a turn, in the order of `HINTS`.

    Args:
        turn: The turn.
        folded: Its text in one form for comparing.
        terms: How many terms it has.
    """
    said = turn.content.partition(_CAPTION)[0]
    text = folded[:_READ].replace("’", "'")
    own = text.partition(_CAPTION)[0]
    names = sum(1 for _ in islice(_NAME.finditer(said[:_READ]), _NAMES)) + bool(_QUOTE.search(text))
    return (
        float(asks(turn.content)),
        round(math.log1p(terms), 2),
        float(bool(_TIME.search(text))),
        float(bool(_NUMBER.search(text))),
        min(names, _NAMES) / _NAMES,
        float(bool(_FIRST_PERSON.search(own))),
        float(bool(_OPENING.match(own.lstrip()))),
        float(turn.role == "assistant"),
    )


def asks(content: str) -> bool:
    """Whether a text ends with a question; a caption below it aside."""
    return content.partition(_CAPTION)[0].rstrip()[-1:] in ("?", "？")
