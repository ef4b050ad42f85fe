"""MemoryService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import memory_service_pb2 as pb
from memoryos.v1 import types_pb2
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.memory.service import MemoryService
from memoryos_server.rpc.convert import aware, optional, role_name, role_value, stamp
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoryServicer:
    """Serves memoryos.v1.MemoryService."""

    def __init__(self, memory: MemoryService) -> None:
        self._memory = memory

    async def AddMemory(self, request: pb.AddMemoryRequest, _context: _Context) -> pb.AddMemoryResponse:
        """Keeps one turn."""
        added = await self._memory.add(
            caller(),
            request.user_id,
            NewTurn(
                role=role_name(request.role),
                content=request.content,
                event_id=optional(request, "event_id"),
                session_id=optional(request, "session_id") or "",
                name=optional(request, "name") or "",
                timestamp=aware(request, "timestamp"),
            ),
        )
        current_call().degraded |= added.degraded
        return pb.AddMemoryResponse(event_id=added.event_id, memory_id=added.memory_id, duplicate=added.duplicate)

    async def RetrieveMemory(self, request: pb.RetrieveMemoryRequest, _context: _Context) -> pb.RetrieveMemoryResponse:
        """Finds what is relevant to a question."""
        found = await self._memory.retrieve(
            caller(),
            request.user_id,
            request.query,
            limit=optional(request, "limit"),
            min_score=optional(request, "min_score"),
            max_tokens=optional(request, "max_tokens"),
            as_of=aware(request, "as_of"),
            explain=request.explain,
        )
        current_call().degraded |= found.degraded
        return pb.RetrieveMemoryResponse(
            episodes=[
                types_pb2.Episode(
                    id=hit.turn.id,
                    event_id=hit.turn.event_id,
                    session_id=hit.turn.session_id,
                    role=role_value(hit.turn.role),
                    name=hit.turn.name,
                    content=hit.turn.content,
                    timestamp=stamp(hit.turn.timestamp),
                    score=hit.score,
                )
                for hit in found.episodes
            ],
            short_term=[
                types_pb2.Turn(role=role_value(turn.role), content=turn.content, timestamp=stamp(turn.timestamp))
                for turn in found.short_term
            ],
            long_term=pb.LongTerm(),
            explanations=[
                pb.Explanation(
                    episode_id=hit.turn.id,
                    parts=[pb.ScorePart(name=name, value=value) for name, value in hit.parts.items()],
                    raw=hit.raw,
                    calibration=found.calibration,
                )
                for hit in (found.episodes if request.explain else ())
            ],
        )

    async def GetMemoryHistory(
        self, request: pb.GetMemoryHistoryRequest, _context: _Context
    ) -> pb.GetMemoryHistoryResponse:
        """Lists the versions of one memory."""
        versions = await self._memory.history(caller(), request.memory_id)
        return pb.GetMemoryHistoryResponse(
            versions=[
                pb.MemoryVersion(version=v.version, content=v.content, changed_at=stamp(v.changed_at)) for v in versions
            ]
        )
