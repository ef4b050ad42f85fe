"""UsageService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import usage_service_pb2 as pb
from memoryos_server.domain.admin.usage import UsageService
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.ports.usage import Usage
from memoryos_server.rpc.convert import optional

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST = 2**32 - 1


class UsageServicer:
    """Serves memoryos.v1.UsageService."""

    def __init__(self, usage: UsageService) -> None:
        self._usage = usage

    async def ListUsage(self, request: pb.ListUsageRequest, _context: _Context) -> pb.ListUsageResponse:
        """Lists what was spent."""
        found, token = await self._usage.usage(
            caller(),
            tenant_id=request.tenant_id,
            key_id=request.key_id,
            first=request.from_day,
            last=request.to_day,
            page_size=optional(request, "page_size"),
            page_token=request.page_token,
        )
        return pb.ListUsageResponse(usage=[_usage(one) for one in found], next_page_token=token)


def _usage(one: Usage) -> pb.Usage:
    spent = one.spent
    return pb.Usage(
        day=one.day.isoformat(),
        tenant_id=one.tenant_id,
        key_id=one.key_id,
        model=one.model,
        requests=min(spent.requests, _MOST),
        input_tokens=min(spent.input, _MOST),
        output_tokens=min(spent.output, _MOST),
        cached_tokens=min(spent.cached, _MOST),
        reasoning_tokens=min(spent.reasoning, _MOST),
        injected_tokens=min(spent.injected, _MOST),
        estimated_requests=min(spent.estimated_requests, _MOST),
        estimated_input_tokens=min(spent.estimated_input, _MOST),
        estimated_output_tokens=min(spent.estimated_output, _MOST),
    )
