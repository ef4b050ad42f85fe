"""What memory is asked for: the last user message and, where that only makes sense behind others, the turns before it."""

from __future__ import annotations

import re

from memoryos_server.domain.chat.builtin import words
from memoryos_server.domain.chat.context import ends_of
from memoryos_server.domain.chat.request import ChatBody
from memoryos_server.domain.chat.sse import text_of
from memoryos_server.domain.core.text import sound

MOST_WORDS = 5
"""A question with more words of its own says by itself what it is about."""
BEFORE_CHARS = 300
"""What is taken of each turn before it."""

_BACK = re.compile(
    r"\b(?:he|she|it|they|him|her|his|hers|its|them|their|theirs|this|that|these|those|there|then|one|ones|same|else)\b"
    r"|^\W*(?:and|but|or|so|why|how come|what about|how about|really)\b"
    r"|[他她它]|那[个個里裡边邊位时時是]|这[个個里裡边邊位是]|這[個裡邊位是]|其[中他]|[呢]\s*[?？]?\s*$|^\W*(?:那|还有|還有|为什么|為什麼)",
    re.I,
)


def query_of(body: ChatBody) -> str:
    """The text that memories are looked for with; "" if there is no question.

    "Where does she live?" finds nothing by itself. What was said just before names whom it means; it stands behind the
    question, so that a question that needs it not loses little by it.
    """
    question = body.question_text.strip()
    if body.question is None or not refers_back(question):
        return sound(ends_of(question))
    before = [_beginning(text_of(one.get("content"))) for one in _turns_before(body)]
    return sound("\n".join([ends_of(question), *filter(None, before)]))


def refers_back(question: str) -> bool:
    """Whether a question is short and points at something that was said before."""
    return bool(question) and bool(_BACK.search(question)) and len(words(question)) <= MOST_WORDS


def _turns_before(body: ChatBody) -> list[dict[str, object]]:
    """The last message of the user's and of the assistant's before the question, in their order."""
    found: dict[str, dict[str, object]] = {}
    for message in reversed(body.messages[: body.question]):
        role = message.get("role")
        if role in ("user", "assistant") and role not in found and text_of(message.get("content")):
            found[role] = message
        if len(found) == 2:
            break
    return list(reversed(found.values()))


def _beginning(text: str) -> str:
    return text.strip()[:BEFORE_CHARS]
