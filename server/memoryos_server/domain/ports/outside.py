"""Audit, keys, models and providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.audit import AuditEvent


class Recorder(Protocol):
    """Takes events that are recorded, append-only."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Records events durably, in order. The same events given again, after an error, are not recorded twice."""


class AuditLog(Recorder, Protocol):
    """The recorded events, per tenant."""

    def tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[AuditEvent]:
        """The newest events of a tenant (None: of all), oldest of them first."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it: everything but the key.

    Attributes:
        id: `key_` + 16 hex digits.
        user_id: Its user.
        tenant_id: Its tenant; `*` may name any.
        permissions: What it may do.
        description: For people.
        created_at: When it was made.
        expires_at: When it ends, or None.
        last_used_at: When it was last seen, or None. At most a minute late.
        requests_per_minute: How many chats it may have within sixty seconds; 0: any number.
        tokens_per_day: How many tokens its chats may cost on a day, UTC; 0: any number.
    """

    id: str
    user_id: str
    tenant_id: str
    permissions: frozenset[str]
    description: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = None
    requests_per_minute: int = 0
    tokens_per_day: int = 0


class ApiKeys(Protocol):
    """Whose key it is."""

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key that is being used, or None. Cached at most 60 s while the store is up."""

    def held(self, key: str) -> ApiKey | None:
        """As `find`, of a key that was found before, if no store need be asked for it; else None."""

    def seen(self, key: str) -> ApiKey | None:
        """The record of a key as it was found last, or None; it may have been revoked since. Asks no store."""


class KeyStore(Protocol):
    """API keys, stored as keyed hashes."""

    async def look(self, key_or_id: str) -> ApiKey | None:
        """The record of a key by itself or by its id, as the store has it now; it does not count as a use."""

    async def list(self) -> list[ApiKey]:
        """Every key, oldest first."""

    async def create(self, key: str, record: ApiKey) -> None:
        """Keeps a key.

        Raises:
            Exists: The key is there already.
        """

    async def rotate(self, old: ApiKey, ends: datetime | None, key: str, record: ApiKey) -> None:
        """Keeps a new key and, in the same write, gives an old one its end, which every replica learns at once.

        Args:
            old: The old key.
            ends: When it ends; None: now, and it is forgotten.
            key: The new key.
            record: What is kept of it.

        Raises:
            Stale: The old key was changed or removed meanwhile; nothing was done.
        """

    async def revoke(self, key_or_id: str, *, while_there: Sequence[str] = ()) -> ApiKey | None:
        """Removes a key by itself or by its id, at once on every replica; None if there is no such key.

        Args:
            key_or_id: The key.
            while_there: Ids of which one must be there when the key is removed; none: whatever there is.

        Raises:
            Stale: None of them is there any more; nothing was done.
        """


class Embedder(Protocol):
    """Meaning as vectors."""

    @property
    def names(self) -> Mapping[str, int]:
        """Vector name -> dimension; empty where no model is there."""

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """For each text, vector name -> unit vector. A vector that cannot tell anything of a text is left out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of whoever serves a model.

    Attributes:
        model: The model's name.
        body: OpenAI's request as JSON text, which has that name.
        block: The content of the message that memory put in, "" if it did not. It stays beside the question where a
            provider moves system messages to the front.
        path: The interface, by its place under a provider's base URL.
    """

    model: str
    body: str
    block: str = ""
    path: str = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Served:
    """Who answers a request, and what of it does not reach them.

    Attributes:
        provider: The provider's name.
        dropped: The members left out because the provider knows them not; `messages.x` is a member of a message.
    """

    provider: str
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A provider's whole answer.

    Attributes:
        body: Its bytes.
        content_type: Its content type.
        served: Whose it is; None: no provider's.
    """

    body: bytes
    content_type: str
    served: Served | None = None


class Llm(Protocol):
    """The LLM providers, in OpenAI's dialect.

    Errors before the first byte are faults: `UpstreamRejected` (400, 404, 413, 422, 429), `Upstream` (our key refused, 5xx,
    connection), `DeadlineExceeded`, `Invalid` (nobody serves the model). Cancelling or closing a call closes the connection
    at once.
    """

    async def serves(self, model: str) -> bool:
        """Whether a request for the model goes to somebody."""

    async def complete(self, asked: Asked) -> ProviderAnswer:
        """The answer to a request."""

    def stream(self, asked: Asked, served: Callable[[Served], None]) -> AsyncIterator[bytes]:
        """The raw SSE bytes as they come, in pieces of any size; `served` is called before the first.

        Raises:
            Upstream: Midway; the connection broke or fell silent.
        """

    async def models(self) -> list[Mapping[str, object]]:
        """The models that can be named, in OpenAI's shape, as far as they are listed."""
