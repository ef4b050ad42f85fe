"""Anthropic's own Messages interface, which has caching, thoughts and documents that its OpenAI-compatible one lacks."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Any

from memoryos_server.domain.chat.form import CHAT_COMPLETIONS
from memoryos_server.domain.chat.sse import SseSplitter, message_of
from memoryos_server.domain.core.faults import Invalid, Upstream
from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm.anthropic_answer import Chunks, completion, is_data
from memoryos_server.tools.llm.anthropic_request import messages_request
from memoryos_server.tools.llm.provider import Deployment, Provider
from memoryos_server.tools.llm.shaping import shaped
from memoryos_server.tools.llm.transport import AttemptFailed, Response, Transport

MESSAGES = "/messages"
MODELS = "/models?limit=1000"


class Call:
    """A request, put into this interface's form.

    Attributes:
        dropped: The names of what was left out.
    """

    def __init__(self, deployment: Deployment, asked: Asked) -> None:
        """Translates a request.

        Raises:
            Invalid: It holds what cannot be said here.
        """
        self._provider = deployment.provider
        if asked.path != CHAT_COMPLETIONS.path:
            raise Invalid(f"{deployment.provider.name} has no such interface", param="model")
        text, dropped = shaped(asked, deployment.model, self._provider.dialect_of(deployment.model))
        try:
            value = json.loads(text)
            request, more = messages_request(value, asked.block)
            self._body = json.dumps(request, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError):
            raise Invalid(f"{deployment.provider.name} cannot be told this request: a member has an odd form") from None
        self.dropped = (*dropped, *more)
        options = value.get("stream_options")
        self._include_usage = isinstance(options, dict) and options.get("include_usage") is True

    async def begin(self, transport: Transport, *, stream: bool) -> Answer:
        """An answer that has begun.

        Raises:
            AttemptFailed: There is none.
        """
        response = await transport.post(self._provider, MESSAGES, self._body, stream=stream)
        if stream and (fault := _failed_at_once(response.first)):
            response.hang_up()
            raise AttemptFailed(fault, again=True, elsewhere=True)
        return Answer(response, include_usage=self._include_usage)


class Answer:
    """An answer that has begun, in OpenAI's form."""

    def __init__(self, response: Response, *, include_usage: bool) -> None:
        """Keeps the answer."""
        self._response = response
        self._include_usage = include_usage
        self.status = response.status
        self.content_type = response.content_type

    async def whole(self) -> bytes:
        """As `Response.whole`.

        Raises:
            Upstream: It broke off, or is no message.
            DeadlineExceeded: It fell silent.
        """
        try:
            value = json.loads(await self._response.whole())
            if not isinstance(value, dict) or value.get("type") != "message":
                raise ValueError("no message")
            return json.dumps(completion(value), ensure_ascii=False).encode("utf-8", "replace")
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise Upstream("The provider's answer is not whole, or no message") from None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """As `Response.pieces`.

        Raises:
            Upstream: It broke off, or cannot be read.
            DeadlineExceeded: It sent no data for too long.
        """
        events, chunks = SseSplitter(), Chunks(include_usage=self._include_usage)
        async for piece in self._response.pieces(is_data):
            try:
                frames = b"".join(map(chunks.of, events.feed(piece)))
            except (ValueError, TypeError, AttributeError, RecursionError):
                raise Upstream("An event of the provider's answer cannot be read") from None
            if events.overflowed:
                raise Upstream("An event of the provider's answer is too long to be read")
            if frames:
                yield frames
            if chunks.told:
                return

    def hang_up(self) -> None:
        """As `Response.hang_up`."""
        self._response.hang_up()


def _failed_at_once(first: bytes) -> Upstream | None:
    """What is wrong if a stream begins with an error, as in times of high load."""
    for event in SseSplitter().feed(first):
        try:
            value = json.loads(event.data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("type") not in ("ping", "error"):
            return None
        if value["type"] == "error":
            return Upstream(f"The provider failed: {message_of(value.get('error'))}")
    return None


async def listed(transport: Transport, provider: Provider) -> list[Mapping[str, object]]:
    """The provider's models, in OpenAI's shape; empty if it has no list.

    Raises:
        Upstream: The list cannot be had.
    """
    value = await transport.get(provider, MODELS)
    data = value.get("data") if isinstance(value, dict) else None
    found = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    return [
        {"id": one["id"], "object": "model", "created": _created(one.get("created_at")), "owned_by": provider.name}
        for one in found
        if isinstance(one.get("id"), str)
    ]


def _created(at: Any) -> int:
    try:
        return max(0, int(datetime.fromisoformat(at).timestamp()))
    except (TypeError, ValueError):
        return 0
