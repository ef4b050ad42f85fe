"""Turns as JSON lines: `{"role", "content", "timestamp"?, "session_id"?, "name"?, "event_id"?, "user_id"?}`, one a line.

A line without an event id gets one that follows from the file's name and all lines up to it: the same line said twice is two
turns, and a file that has grown since its last import only adds what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from memoryos.importing.items import Item, Problem, Turn, moment, parts, short
from memoryos.importing.streams import Source, lines

ROLES = ("user", "assistant", "system")


def read(source: Source) -> Iterator[Item]:
    """The turns of a file."""
    chain = hashlib.blake2b(source.name.encode("utf-8", "surrogateescape"), digest_size=16)
    with source.parts() as files:
        for file in files:
            for number, line in lines(file):
                chain.update(len(line).to_bytes(8, "big") + line)
                yield from _items(f"line {number}", line, "line-" + chain.hexdigest())


def _items(where: str, line: bytes, event_id: str) -> Iterator[Item]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        yield Problem(where, "it is not valid JSON")
        return
    if not isinstance(value, dict):
        yield Problem(where, "it is no JSON object")
        return
    try:
        turn = _turn(where, value, event_id)
    except ValueError as error:
        yield Problem(where, str(error))
        return
    yield from parts(turn)


def _turn(where: str, value: dict[str, Any], event_id: str) -> Turn:
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("content must be a text that is not blank")
    named: dict[str, str] = {}
    for key in ("event_id", "session_id", "name", "user_id"):
        found = value.get(key)
        if found is not None and not isinstance(found, str):
            raise ValueError(f"{key} must be a string")
        named[key] = found or ""
    return Turn(
        where=where,
        content=content,
        role=role,
        event_id=short(named["event_id"]) if named["event_id"] else event_id,
        session_id=short(named["session_id"]),
        name=named["name"],
        timestamp=moment(value.get("timestamp")),
        user_id=named["user_id"],
    )
