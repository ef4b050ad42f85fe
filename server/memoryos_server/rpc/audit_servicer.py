"""AuditService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import audit_service_pb2 as pb
from memoryos_server.domain.admin.auditing import AuditService
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import caller
from memoryos_server.rpc.convert import aware, optional, stamp

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST = 2**32 - 1


class AuditServicer:
    """Serves memoryos.v1.AuditService."""

    def __init__(self, audit: AuditService) -> None:
        self._audit = audit

    async def ListAuditLogs(self, request: pb.ListAuditLogsRequest, _context: _Context) -> pb.ListAuditLogsResponse:
        """Lists recorded events."""
        found, token = await self._audit.logs(
            caller(),
            user_id=request.user_id,
            event_type=request.event_type,
            limit=optional(request, "limit"),
            before=aware(request, "before"),
            after=aware(request, "after"),
            page_token=request.page_token,
            tenant_id=request.tenant_id,
        )
        return pb.ListAuditLogsResponse(count=len(found), events=map(_event, found), next_page_token=token)

    async def GetAuditStats(self, _request: pb.GetAuditStatsRequest, _context: _Context) -> pb.GetAuditStatsResponse:
        """Gives the number of events."""
        return pb.GetAuditStatsResponse(total_events=min(await self._audit.total(caller()), _MOST))


def _event(event: AuditEvent) -> pb.AuditEvent:
    return pb.AuditEvent(
        id=event.id,
        timestamp=stamp(event.timestamp),
        event_type=event.event_type,
        user_id=event.user_id,
        resource=event.resource,
        action=event.action,
        outcome=event.outcome,
        details=event.details,
        ip_address=event.address,
        actor=event.actor,
        request_id=event.request_id,
        count=event.count,
    )
