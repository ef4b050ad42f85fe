"""Reads an OpenAI request without rewriting it.

Everything a client sends goes on byte for byte; the two things we may add (a memory block, `"stream": true`) are spliced
into the text at positions that the scan here finds. Nothing is parsed and printed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.chat.sse import text_of
from memoryos_server.domain.core.faults import Invalid

_BLANK = re.compile(r"[ \t\n\r]*")
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
    def asked_before(self) -> int:
        """How many earlier user messages say just what the last one says."""
        asked = [self.text[a:b] for m, (a, b) in zip(self.messages, self.spans, strict=True) if m["role"] == "user"]
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
    members = _members(body)
    params = {name: value for name, value, _, _ in members}
    model = params.get("model")
    if not isinstance(model, str) or not model.strip():
        raise Invalid("model is required: the name of a model", param="model")
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
    asked = params.get("stream")
    if asked is not None and not isinstance(asked, bool):
        raise Invalid("stream must be true or false", param="stream")
    if bool(asked) != stream and not (stream and asked is None):
        raise Invalid("stream contradicts the call: a streamed answer is StreamChatCompletion's", param="stream")
    if stream and asked is None:
        return parse_body(_with_stream(body, members), stream=True)
    user = params.get("user")
    start = next(start for name, _, start, _ in reversed(members) if name == "messages")
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    return ChatBody(
        text=body,
        model=model,
        messages=messages,
        spans=[(a, b) for _, a, b in _elements(body, start)],
        question=questions[-1] if questions else None,
        stream=stream,
        user=user if isinstance(user, str) else "",
        params=params,
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
            _members(message_json, f"messages[{index}].message_json")
            written.append(message_json.strip())
    parts = [f'"model":{json.dumps(model, ensure_ascii=False)}', f'"messages":[{",".join(written)}]']
    if temperature is not None:
        parts.append(f'"temperature":{json.dumps(temperature)}')
    if max_tokens is not None:
        parts.append(f'"max_tokens":{max_tokens}')
    if extra_json is not None:
        for name, _, _, _ in _members(extra_json, "extra_json"):
            if name in _MODELLED:
                raise Invalid(f"extra_json must not hold {name}, which has a field of its own", param="extra_json")
        inner = extra_json.strip()[1:-1].strip()
        parts += [inner] if inner else []
    return "{" + ",".join(parts) + "}"


def _check_numbers(params: dict[str, Any]) -> None:
    temperature = params.get("temperature")
    if temperature is not None and (
        isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2
    ):
        raise Invalid("temperature must be a number from 0 to 2", param="temperature")
    most = params.get("max_tokens")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise Invalid("max_tokens must be an integer, at least 1", param="max_tokens")


def _with_stream(body: str, members: Sequence[tuple[str, Any, int, int]]) -> str:
    for name, _, start, end in reversed(members):
        if name == "stream":  # it is null
            return f"{body[:start]}true{body[end:]}"
    end = members[-1][3]
    return f'{body[:end]},"stream":true{body[end:]}'


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    # Python refuses integers of more than 4,300 digits; such a number is only compared, never printed.
    return int(text) if len(text) < 4000 else float("-inf" if text.startswith("-") else "inf")


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _members(text: str, param: str | None = None) -> list[tuple[str, Any, int, int]]:
    """(name, value, start, end) of each member of a JSON object."""
    what = param or "The body"
    try:
        found = list(_scan(text, "{"))
        end = found[-1][3] if found else _skip(text, 0) + 1
        end = _skip(text, end)
        if text[end : end + 1] != "}" or _skip(text, end + 1) != len(text):
            raise ValueError("there is more behind the object")
    except TypeError:
        raise Invalid(f"{what} must be a JSON object", param=param) from None
    except (ValueError, StopIteration) as error:
        raise Invalid(f"{what} is not valid JSON", details=_where(error), param=param) from None
    except RecursionError:
        raise Invalid(f"{what} is nested too deeply", param=param) from None
    return found


def _where(error: Exception) -> str | None:
    # A decoder error's own text holds no content, only what was expected and where.
    return str(error) if isinstance(error, json.JSONDecodeError) else None


def _elements(text: str, start: int) -> Iterator[tuple[Any, int, int]]:
    """(value, start, end) of each element of a JSON array known to be sound."""
    return ((value, a, b) for _, value, a, b in _scan(text, "[", start))


def _scan(text: str, opening: str, at: int = 0) -> Iterator[tuple[str, Any, int, int]]:
    """Walks the members of the object, or elements of the array, that starts at `at`.

    Raises:
        TypeError: Something else stands there.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    at = _skip(text, at)
    if text[at : at + 1] != opening:
        _DECODER.raw_decode(text, at)
        raise TypeError
    closing = "}" if opening == "{" else "]"
    at = _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return
    while True:
        name = ""
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            if not isinstance(key, str):
                raise ValueError("a member's name is no string")
            name = key
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
            at = _skip(text, at + 1)
        value, end = _DECODER.raw_decode(text, at)
        yield name, value, at, end
        at = _skip(text, end)
        following = text[at : at + 1]
        if following == closing:
            return
        if following != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)
