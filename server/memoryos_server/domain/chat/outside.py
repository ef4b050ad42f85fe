"""What of a request comes from outside, and what of it may go on to a provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from memoryos_server.domain.chat.jsontext import Edit, Scalar, edited, is_compound, members, scalars, strings
from memoryos_server.domain.chat.request import ChatBody
from memoryos_server.domain.chat.sse import text_of

_OURS = frozenset({"system", "developer", "assistant"})
_BESIDE = frozenset({"instructions", "prediction", "prompt"})
"""Members of a request beside its messages that hold texts for the model."""

_NO_TEXTS = frozenset({
    "id", "type", "role", "name", "status", "phase", "namespace", "server_label", "version", "format", "detail", "mime_type",
    "media_type", "url", "image", "filename", "path", "working_directory", "user", "data", "file_data", "encrypted_content",
    "signature", "thought_signature", "fingerprint",
})  # fmt: skip
"""Members that are names, places or data rather than texts: whoever changes one breaks the request."""

_NO_TEXT_ENDS = ("_id", "_ids", "_url", "_key")

_DEFINITIONS = "tools"
"""Of tools, in an item as beside the messages: settings, with keys for their servers, rather than what was said."""

_OUTPUT = "output"

_SIGNED = "thinking_blocks"
"""Thoughts with the signature of the provider they came from, which takes them back only as they were."""

_IMAGE = "image_generation_call"
"""An item whose `result` is an image."""

_ARGUMENTS = "arguments"
"""What a tool is called with: JSON as a text, which providers read as such."""

_ANY_NAME_IN = frozenset({"arguments", "input", "env", "attributes"})
_ANY_NAME_RIGHT_IN = frozenset({"variables"})
"""Objects whose members are named by who wrote them, in all of the object or at its top."""


def outside_texts(body: ChatBody, *, history: bool) -> list[str]:
    """What users and tools say in a request: since the last answer, or with `history` in all of it."""
    texts: list[str] = []
    for message, span in zip(reversed(body.messages), reversed(body.spans), strict=True):
        role = message.get("role")
        if role == "assistant" and not history:
            break
        if isinstance(role, str) and role in _OURS:
            continue
        output = text_of(message.get(_OUTPUT)) or _given_out(body.text, message.get(_OUTPUT), span)
        texts += [text for text in (text_of(message.get("content")), output) if text]
    return texts


def _given_out(text: str, output: object, span: tuple[int, int]) -> str:
    """What a tool gave out in a form of its own, such as a shell's streams of each command."""
    if not isinstance(output, (list, dict)):
        return ""
    return "\n".join(one.value for path, one in strings(text, *span) if path[:1] == [_OUTPUT] and _is_text(path))


def passed_on(body: ChatBody, clean: Callable[[str], str]) -> str | None:
    """The request's JSON text with the texts for the model cleaned, None if nothing changes; all else stays as it is.

    What is not known to be no text is one: providers add forms faster than anybody can list their members.
    """
    edits: list[Edit] = []
    within = [(message.get("type"), span) for message, span in zip(body.messages, body.spans, strict=True)]
    within += [("", (one.start, one.end)) for one in members(body.text) if one.name in _BESIDE]
    for kind, span in within:
        for path, one in strings(body.text, *span):
            if _is_text(path) and not (kind == _IMAGE and path == ["result"]):
                cleaned = _cleaned_json(one.value, clean) if one.name == _ARGUMENTS else clean(one.value)
                if cleaned != one.value:
                    edits.append((one.start, one.end, json.dumps(cleaned, ensure_ascii=False)))
    return edited(body.text, edits) if edits else None


def _cleaned_json(text: str, clean: Callable[[str], str]) -> str:
    """A text that may be JSON cleaned, so that it is JSON afterwards if it was before."""
    if not is_compound(text):
        return clean(text)
    edits: list[Edit] = []
    for one in scalars(text):
        cleaned = _cleaned_scalar(one, clean)
        if cleaned != one.text:
            edits.append((one.start, one.end, json.dumps(cleaned, ensure_ascii=False)))
    return edited(text, edits) if edits else text


def _cleaned_scalar(one: Scalar, clean: Callable[[str], str]) -> str:
    """A text or number cleaned as what stands behind its name, for a name tells what a word or number is."""
    before, behind = (f'"{one.name}": "', '"') if one.kind == "text" else (f'"{one.name}": ', "")
    if one.kind != "name":
        whole = clean(f"{before}{one.text}{behind}")
        if whole.startswith(before) and whole.endswith(behind):
            return whole[len(before) : len(whole) - len(behind)]
    return clean(one.text)


def _is_text(path: Sequence[str]) -> bool:
    """Whether somebody wrote a text for the model, by the names that lead to it within its message."""
    if not path:
        return True
    *outer, name = path
    if path[0] in (_DEFINITIONS, _SIGNED):
        return False
    if not _ANY_NAME_IN.isdisjoint(outer) or (outer and outer[-1] in _ANY_NAME_RIGHT_IN):
        return True
    return name not in _NO_TEXTS and not name.endswith(_NO_TEXT_ENDS)
