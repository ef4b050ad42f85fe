"""ConsentService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import consent_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.security.consents import ConsentService

_Context = grpc.aio.ServicerContext[Any, Any]


class ConsentServicer:
    """Serves memoryos.v1.ConsentService."""

    def __init__(self, consents: ConsentService) -> None:
        self._consents = consents

    async def RecordConsent(self, request: pb.RecordConsentRequest, _context: _Context) -> pb.RecordConsentResponse:
        """Records a decision."""
        await self._consents.record(caller(), request.user_id, request.purpose, request.granted)
        return pb.RecordConsentResponse()

    async def CheckConsent(self, request: pb.CheckConsentRequest, _context: _Context) -> pb.CheckConsentResponse:
        """Says the decision that counts."""
        owner, granted = await self._consents.check(caller(), request.user_id, request.purpose)
        return pb.CheckConsentResponse(user_id=owner, purpose=request.purpose, has_consent=granted)
