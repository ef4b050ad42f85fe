"""Reads an OpenAI request without rewriting it.

Everything a client sends goes on byte for byte; the two things we may add (a memory block, `"stream": true`) are spliced
into the text at positions that the scan here finds. Nothing is parsed and printed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.chat.jsontext import Member, edited, elements, members
from memoryos_server.domain.chat.sse import text_of
from memoryos_server.domain.core.faults import Invalid

MAX_MODEL = 256
"""The longest name of a model, in characters."""

_MODELLED = ("model", "messages", "temperature", "max_tokens")


@dataclass(frozen=True, slots=True)
class ChatBody:
    """A request body, checked.

    Attributes:
        text: The JSON text as it came.
        model: The model's name.
        messages: The messages, parsed.
        spans: Where each message starts and ends in `text`.
        question: Index of the last user message, or None.
        stream: Whether it asks for a stream.
        user: OpenAI's `user`, "" if absent.
        params: Every top-level member, parsed; of members named twice the last.
    """

    text: str
    model: str
    messages: Sequence[dict[str, Any]]
    spans: Sequence[tuple[int, int]]
    question: int | None
    stream: bool
    user: str
    params: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The texts of all messages."""
        return [text_of(message.get("content")) for message in self.messages]

    @property
    def question_text(self) -> str:
        """The text of the last user message; "" if there is none."""
        return "" if self.question is None else text_of(self.messages[self.question].get("content"))

    @property
    def choices(self) -> int:
        """How many answers it asks for."""
        number = self.params.get("n")
        return number if isinstance(number, int) and number > 1 else 1

    @property
    def question_json(self) -> str:
        """The JSON text of the last user message; "" if there is none."""
        return "" if self.question is None else self.text[slice(*self.spans[self.question])]

    @property
    def turn(self) -> str | None:
        """What tells the turn from the others of its session; the same request is the same turn. None: nothing does."""
        return f"{self._asked_before}:{self.question_json}"

    @property
    def _asked_before(self) -> int:
        """How many earlier user messages say just what the last one says."""
        asked = [self.text[a:b] for m, (a, b) in zip(self.messages, self.spans, strict=True) if m.get("role") == "user"]
        return asked[:-1].count(asked[-1]) if asked else 0

    @property
    def conversation(self) -> str:
        """The JSON text up to and including the last user message; "" if there is none."""
        return "" if self.question is None else self.text[self.spans[0][0] : self.spans[self.question][1]]

    @property
    def in_tool_loop(self) -> bool:
        """Whether something follows the last user message."""
        return self.question is not None and self.question < len(self.messages) - 1

    def with_system_message(self, content: str) -> str:
        """The JSON text with a system message right before the last user message; every other character stays."""
        if self.question is None:
            return self.text
        at = self.spans[self.question][0]
        message = json.dumps({"role": "system", "content": content}, ensure_ascii=False)
        return f"{self.text[:at]}{message},{self.text[at:]}"


def parse_body(body: str, *, stream: bool) -> ChatBody:
    """Checks a request body.

    Args:
        body: OpenAI's request as JSON text.
        stream: Whether the answer is to be streamed; `"stream": true` is added where it is missing.

    Raises:
        Invalid: It is no JSON object, or a modelled member is missing, ill-typed or out of range.
    """
    named = members(body)
    params = {one.name: one.value for one in named}
    model = model_of(params)
    messages = params.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Invalid("messages is required: a non-empty array", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Invalid(f"messages[{index}] must be an object", param=f"messages[{index}]")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise Invalid(f"messages[{index}].role must be a string", param=f"messages[{index}].role")
    _check_numbers(params)
    text = check_stream(body, named, stream=stream)
    user = params.get("user")
    start = next(one.start for one in reversed(named) if one.name == "messages")
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    return ChatBody(
        text=text,
        model=model,
        messages=messages,
        # What `check_stream` adds moves nothing.
        spans=[(one.start, one.end) for one in elements(body, start)],
        question=questions[-1] if questions else None,
        stream=stream,
        user=user if isinstance(user, str) else "",
        params=params | {"stream": stream},
    )


def build_body(
    model: str,
    messages: Sequence[tuple[str, str, str | None, str | None]],
    temperature: float | None,
    max_tokens: int | None,
    extra_json: str | None,
) -> str:
    """A request body from typed fields.

    Args:
        model: The model's name.
        messages: (role, content, name, message_json) of each message; the last, if given, is the whole message.
        temperature: 0..2, or None.
        max_tokens: At least 1, or None.
        extra_json: A JSON object whose members are put in verbatim, or None.

    Raises:
        Invalid: extra_json or a message_json is no JSON object, or extra_json has a member that is typed.
    """
    written = []
    for index, (role, content, name, message_json) in enumerate(messages):
        if message_json is None:
            message = {"role": role, "content": content} | ({} if name is None else {"name": name})
            written.append(json.dumps(message, ensure_ascii=False))
        elif role or content or name is not None:
            raise Invalid(
                "message_json stands instead of role, content and name", param=f"messages[{index}].message_json"
            )
        else:
            members(message_json, f"messages[{index}].message_json")
            written.append(message_json.strip())
    parts = [f'"model":{json.dumps(model, ensure_ascii=False)}', f'"messages":[{",".join(written)}]']
    if temperature is not None:
        parts.append(f'"temperature":{json.dumps(temperature)}')
    if max_tokens is not None:
        parts.append(f'"max_tokens":{max_tokens}')
    if extra_json is not None:
        for one in members(extra_json, "extra_json"):
            if one.name in _MODELLED:
                raise Invalid(f"extra_json must not hold {one.name}, which has a field of its own", param="extra_json")
        inner = extra_json.strip()[1:-1].strip()
        parts += [inner] if inner else []
    return "{" + ",".join(parts) + "}"


def model_of(params: dict[str, Any]) -> str:
    """The name of the model. It is kept, logged and given back, so it has to be text of some length.

    Raises:
        Invalid: There is none, it is too long, or it has characters that cannot be printed.
    """
    model = params.get("model")
    if not isinstance(model, str) or not model.strip():
        raise Invalid("model is required: the name of a model", param="model")
    if len(model) > MAX_MODEL or not model.isprintable():  # a lone surrogate is not printable either
        raise Invalid(f"model must have at most {MAX_MODEL} printable characters", param="model")
    return model


def check_stream(body: str, named: Sequence[Member], *, stream: bool) -> str:
    """The JSON text of a request, which says how it is to be answered. Every value but that stands where it stood.

    Raises:
        Invalid: It asks for the other way.
    """
    asked = next((one.value for one in reversed(named) if one.name == "stream"), None)
    if asked is not None and not isinstance(asked, bool):
        raise Invalid("stream must be true or false", param="stream")
    if bool(asked) != stream and not (stream and asked is None):
        raise Invalid("stream contradicts the call: a streamed answer is StreamChatCompletion's", param="stream")
    return _with_stream(body, named) if stream and asked is None else body


def check_temperature(params: dict[str, Any]) -> None:
    """Checks how much chance there shall be.

    Raises:
        Invalid: It is no number from 0 to 2.
    """
    temperature = params.get("temperature")
    if temperature is not None and (
        isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2
    ):
        raise Invalid("temperature must be a number from 0 to 2", param="temperature")


def _check_numbers(params: dict[str, Any]) -> None:
    check_temperature(params)
    most = params.get("max_tokens")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise Invalid("max_tokens must be an integer, at least 1", param="max_tokens")


def _with_stream(body: str, named: Sequence[Member]) -> str:
    for one in reversed(named):
        if one.name == "stream":  # it is null
            return edited(body, [(one.start, one.end, "true")])
    end = named[-1].end
    return edited(body, [(end, end, ',"stream":true')])
