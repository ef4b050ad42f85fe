"""Memories that mem0 keeps: the JSON of its `get_all` or of an export, a list or an object with `results` or `memories`.

What mem0 calls a memory is a fact that somebody took down, so each becomes a typed memory of the type `fact`, which is listed,
searched and injected into chats as such; not a turn, because nobody said it in these words. Its mem0 id is its event id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from memoryos.importing.items import MAX_TEXT, Item, Memory, Problem, moment, short
from memoryos.importing.streams import Source, elements

LISTS = ("results", "memories")
_TEXTS = ("memory", "text", "content")


def read(source: Source) -> Iterator[Item]:
    """The memories of a file."""
    number = 0
    with source.parts() as files:
        for file in files:
            for value in elements(file, LISTS):
                number += 1
                yield _item(f"memory {number}", value)


def _item(where: str, value: Any) -> Item:
    if not isinstance(value, dict):
        return Problem(where, "it is no JSON object")
    text = next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), "").strip()
    if not text:
        return Problem(where, "it has no text under `memory`")
    if len(text) > MAX_TEXT:
        return Problem(where, f"its text is longer than {MAX_TEXT:,} characters")
    user = value.get("user_id")
    user_id = user if isinstance(user, str) else ""
    known = value.get("id")
    if known is None or known == "":
        known = hashlib.blake2b(
            f"{len(user_id)}:{user_id}{text}".encode("utf-8", "surrogatepass"), digest_size=16
        ).hexdigest()
    try:
        created_at = moment(value.get("created_at"))
    except ValueError as error:
        return Problem(where, f"created_at: {error}")
    return Memory(where, text, short(f"mem0:{known}"), user_id, created_at)
