"""QueueService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import queue_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.ports import DeadLetter
from memoryos_server.rpc.convert import optional, stamp

_Context = grpc.aio.ServicerContext[Any, Any]


class QueueServicer:
    """Serves memoryos.v1.QueueService."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters

    async def GetQueue(self, request: pb.GetQueueRequest, _context: _Context) -> pb.GetQueueResponse:
        """Says how much waits, and lists dead letters."""
        state = await self._letters.state(
            caller().tenant_id, page_size=optional(request, "page_size"), page_token=request.page_token
        )
        return pb.GetQueueResponse(
            depth=state.depth,
            oldest_seconds=state.oldest_seconds,
            dead_letters=[_letter(letter) for letter in state.dead_letters],
            next_page_token=state.next_page_token,
        )

    async def RequeueDeadLetters(
        self, _request: pb.RequeueDeadLettersRequest, _context: _Context
    ) -> pb.RequeueDeadLettersResponse:
        """Gives all dead letters back."""
        return pb.RequeueDeadLettersResponse(requeued=await self._letters.requeue_all(caller().tenant_id))

    async def RequeueDeadLetter(
        self, request: pb.RequeueDeadLetterRequest, _context: _Context
    ) -> pb.RequeueDeadLetterResponse:
        """Gives one dead letter back."""
        await self._letters.requeue(request.id, caller().tenant_id)
        return pb.RequeueDeadLetterResponse()

    async def DiscardDeadLetter(
        self, request: pb.DiscardDeadLetterRequest, _context: _Context
    ) -> pb.DiscardDeadLetterResponse:
        """Drops one dead letter."""
        await self._letters.discard(request.id, caller().tenant_id)
        return pb.DiscardDeadLetterResponse()


def _letter(letter: DeadLetter) -> pb.DeadLetter:
    return pb.DeadLetter(
        id=letter.id,
        user_id=letter.subject.user_id if letter.subject else "",
        event_id=letter.event_id,
        kind=pb.DeadLetterKind.Value(f"DEAD_LETTER_KIND_{letter.kind.upper()}"),
        reason=letter.reason,
        attempts=letter.attempts,
        failed_at=stamp(letter.failed_at),
        content=letter.content,
    )
