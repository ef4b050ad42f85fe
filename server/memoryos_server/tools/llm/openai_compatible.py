"""Providers that speak OpenAI's dialect, each with its own words."""

from __future__ import annotations

from collections.abc import Mapping

from memoryos_server.domain.chat.form import CHAT_COMPLETIONS
from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm.provider import Deployment, Dialect, Provider
from memoryos_server.tools.llm.shaping import shaped
from memoryos_server.tools.llm.transport import Response, Transport

MODELS = "/models"


class Call:
    """A request in a provider's words.

    Attributes:
        dropped: The names of what was left out.
    """

    def __init__(self, deployment: Deployment, asked: Asked) -> None:
        """Puts a request into the provider's words."""
        self._provider, self._path = deployment.provider, asked.path
        text, self.dropped = shaped(asked, deployment.model, _words(deployment, asked))
        self._body = text.encode("utf-8", "replace")

    async def begin(self, transport: Transport, *, stream: bool) -> Response:
        """An answer that has begun.

        Raises:
            AttemptFailed: There is none.
        """
        return await transport.post(self._provider, self._path, self._body, stream=stream)


def _words(deployment: Deployment, asked: Asked) -> Dialect:
    # What is known of a provider is known of its chat completions.
    return deployment.provider.dialect_of(deployment.model) if asked.path == CHAT_COMPLETIONS.path else Dialect()


async def listed(transport: Transport, provider: Provider) -> list[Mapping[str, object]]:
    """The provider's models, in OpenAI's shape; empty if it has no list.

    Raises:
        Upstream: The list cannot be had.
    """
    value = await transport.get(provider, MODELS)
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        return []
    return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]
