"""A user's conversations, for both clients."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.model import short, when
from memoryos.v1 import memory_service_pb2 as pb
from memoryos.v1 import types_pb2

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client

_NONE = "-"
"""Names the turns without a conversation."""


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation.

    Attributes:
        id: The session's id; "" for the turns that were added without one.
        turns: How many turns it has.
        first_at: The time of the first accepted turn, UTC.
        last_at: The time of the last accepted turn, UTC.
    """

    id: str
    turns: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A page of conversations, last active first; `next_page_token` is "" at the end."""

    sessions: tuple[Session, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """One turn of a conversation, verbatim.

    Attributes:
        memory_id: The id that `history` and `delete` take.
        event_id: The id it was added under.
        role: `user`, `assistant` or `system`.
        name: The speaker, "" if none.
        content: The text.
        timestamp: When it was said, UTC.
    """

    memory_id: str
    event_id: str
    role: str
    name: str
    content: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class TurnPage:
    """A page of a conversation, in the order in which it was kept; `next_page_token` is "" at the end."""

    session_id: str
    turns: tuple[SessionTurn, ...]
    next_page_token: str


class Sessions:
    """`Client.sessions`. Every method takes `user_id` and `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def list(
        self,
        *,
        page_size: int | None = None,
        page_token: str = "",
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> SessionPage:
        """A page of conversations, last active first.

        Args:
            page_size: 1..100; default 20.
            page_token: `next_page_token` of the page before; "": the first page.
            user_id: Whose they are; default: the client's.
            timeout: Seconds; default: the client's.
        """
        request = pb.ListSessionsRequest(page_size=page_size, page_token=page_token)
        return _page(self._client.call("ListSessions", request, user_id=user_id, timeout=timeout))

    def get(
        self,
        session_id: str,
        *,
        page_size: int | None = None,
        page_token: str = "",
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TurnPage:
        """A page of what was said in a conversation.

        Args:
            session_id: The conversation; "": the turns without one.
            page_size: 1..100; default 20.
            page_token: `next_page_token` of the page before; "": the first page.
            user_id: Whose it is; default: the client's.
            timeout: Seconds; default: the client's.
        """
        request = pb.GetSessionRequest(session_id=session_id or _NONE, page_size=page_size, page_token=page_token)
        return _turns(self._client.call("GetSession", request, user_id=user_id, timeout=timeout))

    def delete(self, session_id: str, *, user_id: str | None = None, timeout: float | None = None) -> int:
        """Removes a conversation and what was derived from it, and gives the number of its turns."""
        request = pb.DeleteSessionRequest(session_id=session_id or _NONE)
        return _deleted(self._client.call("DeleteSession", request, user_id=user_id, timeout=timeout))


class AsyncSessions:
    """`AsyncClient.sessions`; as `Sessions`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def list(
        self,
        *,
        page_size: int | None = None,
        page_token: str = "",
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> SessionPage:
        """A page of conversations, last active first."""
        request = pb.ListSessionsRequest(page_size=page_size, page_token=page_token)
        return _page(await self._client.call("ListSessions", request, user_id=user_id, timeout=timeout))

    async def get(
        self,
        session_id: str,
        *,
        page_size: int | None = None,
        page_token: str = "",
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> TurnPage:
        """A page of what was said in a conversation."""
        request = pb.GetSessionRequest(session_id=session_id or _NONE, page_size=page_size, page_token=page_token)
        return _turns(await self._client.call("GetSession", request, user_id=user_id, timeout=timeout))

    async def delete(self, session_id: str, *, user_id: str | None = None, timeout: float | None = None) -> int:
        """Removes a conversation and what was derived from it, and gives the number of its turns."""
        request = pb.DeleteSessionRequest(session_id=session_id or _NONE)
        return _deleted(await self._client.call("DeleteSession", request, user_id=user_id, timeout=timeout))


def _page(message: Message) -> SessionPage:
    page = cast(pb.ListSessionsResponse, message)
    sessions = tuple(Session(s.id, s.turns, when(s.first_at), when(s.last_at)) for s in page.sessions)
    return SessionPage(sessions, page.next_page_token)


def _turns(message: Message) -> TurnPage:
    page = cast(pb.GetSessionResponse, message)
    turns = tuple(
        SessionTurn(t.memory_id, t.event_id, short(types_pb2.Role, t.role), t.name, t.content, when(t.timestamp))
        for t in page.turns
    )
    return TurnPage(page.session_id, turns, page.next_page_token)


def _deleted(message: Message) -> int:
    return cast(pb.DeleteSessionResponse, message).deleted
