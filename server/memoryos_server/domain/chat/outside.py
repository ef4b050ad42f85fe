"""What of a request comes from outside, and what of it may go on to a provider."""

from __future__ import annotations

import json
from collections.abc import Callable

from memoryos_server.domain.chat.jsontext import Edit, edited, strings
from memoryos_server.domain.chat.request import ChatBody
from memoryos_server.domain.chat.sse import text_of

_OURS = frozenset({"system", "developer", "assistant"})
_TEXTS = frozenset({"content", "text", "output", "arguments", "refusal", "transcript"})
"""Members of a message whose texts somebody wrote; others are names, addresses and data."""


def outside_texts(body: ChatBody, *, history: bool) -> list[str]:
    """What users and tools say in a request: since the last answer, or with `history` in all of it."""
    texts: list[str] = []
    for message in reversed(body.messages):
        role = message.get("role")
        if role == "assistant" and not history:
            break
        if isinstance(role, str) and role in _OURS:
            continue
        texts += [text for text in (text_of(message.get("content")), text_of(message.get("output"))) if text]
    return texts


def passed_on(body: ChatBody, clean: Callable[[str], str]) -> str | None:
    """The request's JSON text with the texts of its messages cleaned, None if nothing changes; all else stays as it is."""
    edits: list[Edit] = []
    for span in body.spans:
        for one in strings(body.text, *span):
            if one.name and one.name not in _TEXTS:
                continue
            cleaned = clean(one.value)
            if cleaned != one.value:
                edits.append((one.start, one.end, json.dumps(cleaned, ensure_ascii=False)))
    return edited(body.text, edits) if edits else None
