"""What was recorded, for both clients. Of oneself it takes a key with `security`, of others and in all `admin`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.model import stamp, when
from memoryos.v1 import audit_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One recorded event; no content.

    Attributes:
        id: The event's id.
        timestamp: When it happened, UTC.
        event_type: What happened, such as `memory.add`.
        user_id: Whose data was touched, "" if nobody's, or if the person is not known or was erased.
        resource: What was touched, "" if the person was erased.
        action: The RPC or command.
        outcome: `ok`, `denied`, `failed`, `duplicate`, `intent` or `partial`.
        details: A reason code.
        ip_address: The client's address, "" if it is not known, or as `user_id`.
        actor: The id of the key that called, or `anonymous`.
        request_id: The id of the call.
        count: How many equal refusals within a minute it stands for, else 1.
    """

    id: str
    timestamp: datetime
    event_type: str
    user_id: str
    resource: str
    action: str
    outcome: str
    details: str
    ip_address: str
    actor: str
    request_id: str
    count: int


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of events, newest first; `next_page_token` names the next page, "" at the end."""

    events: tuple[AuditEvent, ...]
    next_page_token: str


class Audit:
    """`Client.audit`. Every method takes `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def list(
        self,
        *,
        user_id: str | None = None,
        event_type: str = "",
        limit: int | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        page_token: str = "",
        tenant_id: str = "",
        timeout: float | None = None,
    ) -> AuditPage:
        """A page of what was recorded.

        Args:
            user_id: About whom; default: the client's user, and without one everybody of the tenant.
            event_type: The one type that is wanted; "": all.
            limit: 1..1000; default 50.
            before: Leaves out what happened then or later.
            after: Leaves out what happened then or earlier.
            page_token: `next_page_token` of the page before, with all else as it was; "": the first page.
            tenant_id: Whose events; "": those of the tenant of the call.
            timeout: Seconds; default: the client's.
        """
        request = _request(event_type, limit, before, after, page_token, tenant_id)
        return _page(self._client.call("ListAuditLogs", request, user_id=user_id, timeout=timeout))

    def total(self, *, timeout: float | None = None) -> int:
        """How many events were ever recorded of the tenant."""
        return _total(self._client.call("GetAuditStats", pb.GetAuditStatsRequest(), timeout=timeout))


class AsyncAudit:
    """`AsyncClient.audit`; as `Audit`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def list(
        self,
        *,
        user_id: str | None = None,
        event_type: str = "",
        limit: int | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        page_token: str = "",
        tenant_id: str = "",
        timeout: float | None = None,
    ) -> AuditPage:
        """A page of what was recorded."""
        request = _request(event_type, limit, before, after, page_token, tenant_id)
        return _page(await self._client.call("ListAuditLogs", request, user_id=user_id, timeout=timeout))

    async def total(self, *, timeout: float | None = None) -> int:
        """How many events were ever recorded of the tenant."""
        return _total(await self._client.call("GetAuditStats", pb.GetAuditStatsRequest(), timeout=timeout))


def _request(
    event_type: str,
    limit: int | None,
    before: datetime | None,
    after: datetime | None,
    page_token: str,
    tenant_id: str,
) -> pb.ListAuditLogsRequest:
    return pb.ListAuditLogsRequest(
        event_type=event_type,
        limit=limit,
        before=None if before is None else stamp(before),
        after=None if after is None else stamp(after),
        page_token=page_token,
        tenant_id=tenant_id,
    )


def _page(message: Message) -> AuditPage:
    page = cast(pb.ListAuditLogsResponse, message)
    return AuditPage(tuple(map(_event, page.events)), page.next_page_token)


def _event(event: pb.AuditEvent) -> AuditEvent:
    return AuditEvent(
        id=event.id,
        timestamp=when(event.timestamp),
        event_type=event.event_type,
        user_id=event.user_id,
        resource=event.resource,
        action=event.action,
        outcome=event.outcome,
        details=event.details,
        ip_address=event.ip_address,
        actor=event.actor,
        request_id=event.request_id,
        count=event.count,
    )


def _total(message: Message) -> int:
    return cast(pb.GetAuditStatsResponse, message).total_events
