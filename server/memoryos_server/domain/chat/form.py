"""The two interfaces of OpenAI in which a conversation is continued, as far as memory has to know them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from memoryos_server.domain.chat import builtin
from memoryos_server.domain.chat.answer import goes_on
from memoryos_server.domain.chat.builtin import Rendering
from memoryos_server.domain.chat.request import ChatBody, parse_body
from memoryos_server.domain.chat.sse import Tee, first_choice, generated_of, said_of


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says.

    Attributes:
        content: Its text.
        reason: OpenAI's finish reason, "" if it has not ended.
        ends: Whether it ends the turn.
        goes_on: Whether the client is to do something before the turn ends.
        usage: What the provider says of its cost.
        generated: All text that was written for it.
    """

    content: str
    reason: str
    ends: bool
    goes_on: bool
    usage: object
    generated: str


class Form(Protocol):
    """An interface."""

    path: str
    """Where it is, under the base URL of a provider that has it."""

    asked: str
    """The member of a request that says what is asked."""

    def parse(self, body: str, *, stream: bool) -> ChatBody:
        """Checks a request body.

        Args:
            body: The request as JSON text.
            stream: Whether the answer is to be streamed; `"stream": true` is added where it is missing.

        Raises:
            Invalid: It is no JSON object, or a modelled member is missing, ill-typed or out of range.
        """

    def tee(self, body: ChatBody) -> Tee:
        """What reads the copy of a stream."""

    def said(self, value: dict[str, Any]) -> Said:
        """What a whole answer says."""

    def as_json(self, text: str, how: Rendering) -> bytes:
        """An answer of the built-in model."""

    def as_sse(self, text: str, how: Rendering, *, include_usage: bool) -> Iterator[bytes]:
        """An answer of the built-in model as a stream."""


class ChatForm(Form):
    """Chat completions."""

    path = "/chat/completions"
    asked = "messages"

    def parse(self, body: str, *, stream: bool) -> ChatBody:
        """As `Form.parse`."""
        return parse_body(body, stream=stream)

    def tee(self, body: ChatBody) -> Tee:
        """As `Form.tee`."""
        return Tee(body.choices)

    def said(self, value: dict[str, Any]) -> Said:
        """As `Form.said`: of choice 0, but for what was generated."""
        choice = first_choice(value)
        message = choice.get("message")
        content = said_of(message) if isinstance(message, dict) else ""
        finish = choice.get("finish_reason")
        reason = finish if isinstance(finish, str) else ""
        more = goes_on(reason, message)
        return Said(content, reason, bool(choice) and not more, more, value.get("usage"), generated_of(value))

    def as_json(self, text: str, how: Rendering) -> bytes:
        """As `Form.as_json`."""
        return builtin.as_json(text, how)

    def as_sse(self, text: str, how: Rendering, *, include_usage: bool) -> Iterator[bytes]:
        """As `Form.as_sse`."""
        return builtin.as_sse(text, how, include_usage=include_usage)


CHAT_COMPLETIONS: Form = ChatForm()
