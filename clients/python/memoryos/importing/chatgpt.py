"""Conversations of a ChatGPT data export: `conversations.json`, or the ZIP archive that holds it.

Of every conversation the branch that was last looked at is taken: what user and assistant said in words. Not taken are
system and tool messages, calls of tools, hidden ones and thoughts. A conversation is a session, a message's id its event id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memoryos.importing.items import Item, Problem, Turn, moment, parts, short
from memoryos.importing.streams import Source, elements

_ROLES = ("user", "assistant")
_WORDS = ("text", "multimodal_text")


def read(source: Source) -> Iterator[Item]:
    """The turns of a file, conversation by conversation."""
    number = 0
    with source.parts() as files:
        for file in files:
            for conversation in elements(file, ("conversations",)):
                number += 1
                yield from _conversation(f"conversation {number}", conversation)


def _conversation(where: str, conversation: Any) -> Iterator[Item]:
    mapping = conversation.get("mapping") if isinstance(conversation, dict) else None
    if not isinstance(mapping, dict):
        yield Problem(where, "it has no mapping of messages")
        return
    session = str(conversation.get("conversation_id") or conversation.get("id") or "")
    if not session:
        yield Problem(where, "it has no id")
        return
    try:
        began = moment(conversation.get("create_time"))
    except ValueError:
        began = None
    for key, node in _branch(mapping, conversation.get("current_node")):
        message = node.get("message")
        if not isinstance(message, dict):
            continue
        text = _text(message)
        if not text:
            continue
        try:
            said = moment(message.get("create_time")) or began
        except ValueError:
            said = began
        yield from parts(
            Turn(
                where=f"{where}, message {message.get('id') or key}",
                content=text,
                role=message["author"]["role"],
                event_id=short(str(message.get("id") or f"{session}/{key}")),
                session_id=short(session),
                timestamp=said,
            )
        )


def _branch(mapping: Mapping[str, Any], current: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The nodes from the root to the current one; without a current one, to the youngest leaf."""
    key = current if isinstance(current, str) and current in mapping else _last_leaf(mapping)
    branch: list[tuple[str, Mapping[str, Any]]] = []
    seen: set[str] = set()
    while isinstance(key, str) and key not in seen:  # a damaged file may go in circles
        node = mapping.get(key)
        if not isinstance(node, dict):
            break
        seen.add(key)
        branch.append((key, node))
        key = node.get("parent")
    return branch[::-1]


def _last_leaf(mapping: Mapping[str, Any]) -> str | None:
    leaves = [key for key, node in mapping.items() if isinstance(node, dict) and not node.get("children")]

    def said(key: str) -> float:
        message = mapping[key].get("message")
        value = message.get("create_time") if isinstance(message, dict) else None
        return float(value) if isinstance(value, int | float) else 0.0

    return max(leaves, key=said, default=None)


def _text(message: Mapping[str, Any]) -> str:
    """What a message says in words; "" if it is none that anybody saw."""
    author, content, about = message.get("author"), message.get("content"), message.get("metadata")
    if not isinstance(author, dict) or author.get("role") not in _ROLES or not isinstance(content, dict):
        return ""
    if isinstance(about, dict) and about.get("is_visually_hidden_from_conversation"):
        return ""
    if message.get("recipient") not in (None, "all") or content.get("content_type") not in _WORDS:
        return ""
    said = content.get("parts")
    return "\n".join(filter(None, map(_words, said))) if isinstance(said, list) else ""


def _words(part: Any) -> str:
    if isinstance(part, dict):  # an image or a recording; of speech there may be a transcript
        part = part.get("text")
    return part.strip() if isinstance(part, str) else ""
