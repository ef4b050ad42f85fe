"""PrivacyService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import grpc

from memoryos.v1 import privacy_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.ports.privacy import ERASED, NOT_OURS, Erasure
from memoryos_server.domain.privacy.service import PrivacyService
from memoryos_server.rpc.convert import stamp

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST = 2**32 - 1
_DONE = "User data deleted from all backends"
_NOT_DONE = "Some backends failed"


class PrivacyServicer:
    """Serves memoryos.v1.PrivacyService."""

    def __init__(self, privacy: PrivacyService) -> None:
        self._privacy = privacy

    async def ExportUserData(
        self, request: pb.ExportUserDataRequest, _context: _Context
    ) -> AsyncIterator[pb.ExportUserDataResponse]:
        """Gives everything, in pieces."""
        async for piece in await self._privacy.export(caller(), request.user_id):
            yield pb.ExportUserDataResponse(export_json=piece)

    async def DeleteUserData(self, request: pb.DeleteUserDataRequest, _context: _Context) -> pb.DeleteUserDataResponse:
        """Erases everything."""
        erasure = await self._privacy.erase(caller(), request.user_id)
        done = erasure.state == ERASED
        return pb.DeleteUserDataResponse(
            status=erasure.state if done else "partial",
            message=_DONE if done else _NOT_DONE,
            errors=erasure.errors,
            certificate_id=erasure.id,
        )

    async def GetErasureCertificate(
        self, request: pb.GetErasureCertificateRequest, _context: _Context
    ) -> pb.GetErasureCertificateResponse:
        """Shows what became of an erasure."""
        erasure = await self._privacy.certificate(caller(), request.id)
        return pb.GetErasureCertificateResponse(certificate=_certificate(erasure))


def _certificate(erasure: Erasure) -> pb.ErasureCertificate:
    made = pb.ErasureCertificate(
        id=erasure.id,
        status=erasure.state,
        tenant_id=erasure.whose.tenant_id,
        user_hash=erasure.whose.lookup,
        requested_by=erasure.actor,
        requested_at=stamp(erasure.requested_at),
        attempts=min(erasure.attempts, _MOST),
        errors=erasure.errors,
        categories=[
            pb.ErasedCategory(
                category=name,
                removed=min(part.removed, _MOST),
                left=None if part.left is None else min(part.left, _MOST),
                error=part.error,
            )
            for name, part in sorted(erasure.parts.items())
        ],
        files=[_files(store, said) for store, said in sorted(erasure.files.items())],
    )
    if erasure.verified_at is not None:
        made.verified_at.CopyFrom(stamp(erasure.verified_at))
    if erasure.compacted_at is not None:
        made.compacted_at.CopyFrom(stamp(erasure.compacted_at))
    return made


def _files(store: str, said: str) -> pb.StoreFiles:
    if said == NOT_OURS:
        return pb.StoreFiles(store=store, state=NOT_OURS)
    return pb.StoreFiles(store=store, state="rewritten", rewritten_at=stamp(datetime.fromisoformat(said)))
