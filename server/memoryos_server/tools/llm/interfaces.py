"""The interfaces that providers have, behind one form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm import anthropic, openai_compatible
from memoryos_server.tools.llm.provider import Deployment, Provider
from memoryos_server.tools.llm.transport import Transport


class Answer(Protocol):
    """An answer that has begun, in OpenAI's form. Whoever has one hangs up, whatever happens."""

    @property
    def status(self) -> int:
        """Its HTTP status."""

    @property
    def content_type(self) -> str:
        """Its content type."""

    async def whole(self) -> bytes:
        """All of its bytes."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Its bytes as they come."""

    def hang_up(self) -> None:
        """Closes the connection, unless the answer is complete."""


class Call(Protocol):
    """A request in a provider's own form."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of what was left out."""

    async def begin(self, transport: Transport, *, stream: bool) -> Answer:
        """An answer that has begun, or `AttemptFailed`."""


def call(deployment: Deployment, asked: Asked) -> Call:
    """A request as its provider takes it.

    Raises:
        Invalid: It holds what this provider cannot be told.
    """
    kind = anthropic.Call if deployment.provider.api == "anthropic" else openai_compatible.Call
    return kind(deployment, asked)


async def listed(transport: Transport, provider: Provider) -> list[Mapping[str, object]]:
    """A provider's models, in OpenAI's shape; empty if it has no list.

    Raises:
        Upstream: The list cannot be had.
    """
    ask = anthropic.listed if provider.api == "anthropic" else openai_compatible.listed
    return await ask(transport, provider)
