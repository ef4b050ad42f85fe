"""Accepted work that is not done, and work that was given up, for both clients. It takes a key with `admin`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.model import short, when
from memoryos.v1 import queue_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Accepted work that failed too often.

    Attributes:
        id: The dead letter's id.
        user_id: Whose it is, "" if that cannot be known any more.
        event_id: The event, "" for a change.
        kind: `turn`, `change` or `unreadable`.
        reason: The last failure.
        attempts: How often it was tried.
        failed_at: When it was given up, UTC.
        content: The turn's text, "" if there is none.
    """

    id: str
    user_id: str
    event_id: str
    kind: str
    reason: str
    attempts: int
    failed_at: datetime
    content: str


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of the queue, with a page of dead letters.

    Attributes:
        depth: The number of accepted entries of all tenants that are not done.
        oldest_seconds: How long the oldest of them waits, 0 if there is none.
        dead_letters: The tenant's, oldest first.
        next_page_token: Names the next page, "" at the end.
    """

    depth: int
    oldest_seconds: float
    dead_letters: tuple[DeadLetter, ...]
    next_page_token: str


class Queue:
    """`Client.queue`. Every method takes `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def list(self, *, page_size: int | None = None, page_token: str = "", timeout: float | None = None) -> QueueState:
        """How much waits, and a page of dead letters.

        Args:
            page_size: 1..100; default 20.
            page_token: `next_page_token` of the page before; "": the first page.
            timeout: Seconds; default: the client's.
        """
        request = pb.GetQueueRequest(page_size=page_size, page_token=page_token)
        return _state(self._client.call("GetQueue", request, timeout=timeout))

    def requeue(self, letter_id: str, *, timeout: float | None = None) -> None:
        """Gives one dead letter back to the workers, with no attempts counted."""
        self._client.call("RequeueDeadLetter", pb.RequeueDeadLetterRequest(id=letter_id), timeout=timeout)

    def requeue_all(self, *, timeout: float | None = None) -> int:
        """Gives all dead letters of the tenant back and gives their number."""
        return _requeued(self._client.call("RequeueDeadLetters", pb.RequeueDeadLettersRequest(), timeout=timeout))

    def discard(self, letter_id: str, *, timeout: float | None = None) -> None:
        """Drops one dead letter for good; its event ends as `rejected`."""
        self._client.call("DiscardDeadLetter", pb.DiscardDeadLetterRequest(id=letter_id), timeout=timeout)


class AsyncQueue:
    """`AsyncClient.queue`; as `Queue`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def list(
        self, *, page_size: int | None = None, page_token: str = "", timeout: float | None = None
    ) -> QueueState:
        """How much waits, and a page of dead letters."""
        request = pb.GetQueueRequest(page_size=page_size, page_token=page_token)
        return _state(await self._client.call("GetQueue", request, timeout=timeout))

    async def requeue(self, letter_id: str, *, timeout: float | None = None) -> None:
        """Gives one dead letter back to the workers, with no attempts counted."""
        await self._client.call("RequeueDeadLetter", pb.RequeueDeadLetterRequest(id=letter_id), timeout=timeout)

    async def requeue_all(self, *, timeout: float | None = None) -> int:
        """Gives all dead letters of the tenant back and gives their number."""
        return _requeued(await self._client.call("RequeueDeadLetters", pb.RequeueDeadLettersRequest(), timeout=timeout))

    async def discard(self, letter_id: str, *, timeout: float | None = None) -> None:
        """Drops one dead letter for good; its event ends as `rejected`."""
        await self._client.call("DiscardDeadLetter", pb.DiscardDeadLetterRequest(id=letter_id), timeout=timeout)


def _state(message: Message) -> QueueState:
    state = cast(pb.GetQueueResponse, message)
    return QueueState(state.depth, state.oldest_seconds, tuple(map(_letter, state.dead_letters)), state.next_page_token)


def _letter(letter: pb.DeadLetter) -> DeadLetter:
    return DeadLetter(
        id=letter.id,
        user_id=letter.user_id,
        event_id=letter.event_id,
        kind=short(pb.DeadLetterKind, letter.kind),
        reason=letter.reason,
        attempts=letter.attempts,
        failed_at=when(letter.failed_at),
        content=letter.content,
    )


def _requeued(message: Message) -> int:
    return cast(pb.RequeueDeadLettersResponse, message).requeued
