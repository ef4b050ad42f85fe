"""Puts a request into a provider's words. What the provider does not mind stays as it is, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from memoryos_server.domain.chat.jsontext import Edit, Member, edited, elements, inner_members, members, without
from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm.provider import Dialect

_PLAIN = Dialect()
_NEEDED = frozenset({"model", "messages", "stream"})


def shaped(asked: Asked, model: str, dialect: Dialect) -> tuple[str, tuple[str, ...]]:
    """A request as a provider takes it, and the names of what was left out.

    Args:
        asked: The request.
        model: What the provider calls the model.
        dialect: How its requests differ.
    """
    body, named = asked.body, asked.model
    if named == model and dialect == _PLAIN:
        return body, ()
    found = members(body)
    edits: list[Edit] = []
    gone: list[int] = []
    dropped: dict[str, None] = {}
    theirs = {one.name for one in found}
    last = {one.name: at for at, one in enumerate(found)}  # of members named twice the last counts
    for at, one in enumerate(found):
        name = dialect.rename.get(one.name, one.name)
        if _refused(name, dialect) or (name != one.name and name in theirs):
            gone.append(at)
            dropped[one.name] = None
            continue
        if name != one.name:
            edits.append((one.at, one.start, f"{json.dumps(name)}:"))
        if one.name == "model" and model != named:
            edits.append((one.start, one.end, json.dumps(model, ensure_ascii=False)))
        elif isinstance(one.value, str) and (instead := dialect.values.get(name, {}).get(one.value)) is not None:
            edits.append((one.start, one.end, json.dumps(instead)))
        elif one.name == "messages" and last["messages"] == at:
            more, lost = _messages(asked, one, dialect)
            edits += more
            dropped.update(dict.fromkeys(lost))
    return edited(body, edits + without(found, gone)), tuple(dropped)


def _refused(name: str, dialect: Dialect) -> bool:
    allowed = dialect.allow is None or name in dialect.allow
    return name not in _NEEDED and (name in dialect.drop or not allowed)


def _messages(asked: Asked, messages: Member, dialect: Dialect) -> tuple[list[Edit], list[str]]:
    if not dialect.drop_of_messages and not dialect.hoists_system:
        return [], []
    body = asked.body
    listed = elements(body, messages.start)
    edits: list[Edit] = []
    dropped = []
    moved = _amid(listed, asked.block) if dialect.hoists_system else set()
    for at, message in enumerate(listed):
        if at in moved:
            continue
        inner = inner_members(body, message.start)
        gone = [place for place, one in enumerate(inner) if one.name in dialect.drop_of_messages]
        edits += without(inner, gone)
        dropped += [f"messages.{inner[place].name}" for place in gone]
    return edits + _moved(asked, listed, moved), dropped


def _amid(messages: Sequence[Member], block: str) -> set[int]:
    """The system messages that stand behind another message, and the one that memory put in."""
    first = next((at for at, one in enumerate(messages) if not _is_system(one)), len(messages))
    return {
        at
        for at, one in enumerate(messages)
        if _is_system(one) and (at > first or (block and one.value.get("content") == block))
    }


def _is_system(message: Member) -> bool:
    return message.value.get("role") in ("system", "developer")


def _moved(asked: Asked, messages: Sequence[Member], moved: Collection[int]) -> list[Edit]:
    """Makes messages a part of the next user message, or user messages where none follows.

    Memory's block comes behind what the user says: so the message begins as it will with the next turn, without the block.
    """
    body = asked.body
    edits: list[Edit] = []
    gone = []
    before: dict[int, list[str]] = {}
    behind: dict[int, list[str]] = {}
    target = None
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].value.get("role") == "user":
            target = at
        if at not in moved:
            continue
        inner = inner_members(body, messages[at].start)
        content = next((one for one in reversed(inner) if one.name == "content"), None)
        if target is None or content is None:
            edits += [(one.start, one.end, '"user"') for one in inner if one.name == "role"]
            continue
        gone.append(at)
        ours = bool(asked.block) and content.value == asked.block
        parts = (behind if ours else before).setdefault(target, [])
        parts[:0] = _parts(body, content)
    for at in {**before, **behind}:
        own = inner_members(body, messages[at].start)
        content = next((one for one in reversed(own) if one.name == "content"), None)
        said = _parts(body, content) if content is not None else []
        whole = ",".join([*before.get(at, []), *said, *behind.get(at, [])])
        if content is None:
            edits.append((own[0].at, own[0].at, f'"content":[{whole}],'))
        else:
            edits.append((content.start, content.end, f"[{whole}]"))
    return edits + without(messages, gone)


def _parts(body: str, content: Member) -> list[str]:
    """The JSON texts of the parts of a content."""
    if isinstance(content.value, list):
        return [body[one.start : one.end] for one in elements(body, content.start)]
    if content.value is None:
        return []
    return [f'{{"type":"text","text":{body[content.start : content.end]}}}']
