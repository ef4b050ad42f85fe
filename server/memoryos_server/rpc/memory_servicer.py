"""MemoryService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import memory_service_pb2 as pb
from memoryos.v1 import types_pb2
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.memory.knowledge import Belief
from memoryos_server.domain.memory.said import SaidService
from memoryos_server.domain.memory.service import MemoryService
from memoryos_server.rpc.convert import aware, optional, role_name, role_value, stamp
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoryServicer:
    """Serves memoryos.v1.MemoryService."""

    def __init__(self, memory: MemoryService, said: SaidService) -> None:
        self._memory = memory
        self._said = said

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
                    outdated=hit.turn.id in found.outdated,
                )
                for hit in found.episodes
            ],
            short_term=[
                types_pb2.Turn(role=role_value(turn.role), content=turn.content, timestamp=stamp(turn.timestamp))
                for turn in found.short_term
            ],
            mid_term=[
                pb.Segment(id=topic.id, summary=topic.summary, score=topic.score, tags=topic.tags)
                for topic in found.mid_term
            ],
            long_term=pb.LongTerm(
                profile=found.profile,
                knowledge=[fact.text for fact in found.knowledge],
                facts=[_fact(fact) for fact in found.knowledge],
            ),
            explanations=[
                pb.Explanation(
                    episode_id=hit.turn.id,
                    parts=[types_pb2.ScorePart(name=name, value=value) for name, value in hit.parts.items()],
                    raw=hit.raw,
                    calibration=found.calibration,
                )
                for hit in (found.episodes if request.explain else ())
            ],
            withheld=found.withheld or None,
        )

    async def ListSessions(self, request: pb.ListSessionsRequest, _context: _Context) -> pb.ListSessionsResponse:
        """Lists conversations."""
        sessions, token = await self._said.sessions(
            caller(), request.user_id, page_size=optional(request, "page_size"), page_token=request.page_token
        )
        return pb.ListSessionsResponse(
            sessions=[
                pb.Session(id=s.id, turns=s.turns, first_at=stamp(s.first_at), last_at=stamp(s.last_at))
                for s in sessions
            ],
            next_page_token=token,
        )

    async def GetSession(self, request: pb.GetSessionRequest, _context: _Context) -> pb.GetSessionResponse:
        """Gives what was said in a conversation."""
        turns, token = await self._said.session(
            caller(),
            request.user_id,
            request.session_id,
            page_size=optional(request, "page_size"),
            page_token=request.page_token,
        )
        return pb.GetSessionResponse(
            session_id=turns[0].session_id if turns else request.session_id,
            turns=[
                pb.SessionTurn(
                    memory_id=turn.id,
                    event_id=turn.event_id,
                    role=role_value(turn.role),
                    name=turn.name,
                    content=turn.content,
                    timestamp=stamp(turn.timestamp),
                )
                for turn in turns
            ],
            next_page_token=token,
        )

    async def DeleteSession(self, request: pb.DeleteSessionRequest, _context: _Context) -> pb.DeleteSessionResponse:
        """Removes a conversation."""
        deleted = await self._said.delete_session(caller(), request.user_id, request.session_id)
        current_call().degraded |= deleted.degraded
        return pb.DeleteSessionResponse(deleted=deleted.turns)

    async def GetEvent(self, request: pb.GetEventRequest, _context: _Context) -> pb.GetEventResponse:
        """Says what became of an event."""
        state = await self._said.event(caller(), request.user_id, request.event_id)
        return pb.GetEventResponse(
            event_id=state.event_id,
            memory_id=state.memory_id,
            state=pb.EventState.Value(f"EVENT_STATE_{state.state.upper()}"),
            reason=state.reason,
            related_memory_id=state.related,
            changed_at=stamp(state.changed_at) if state.changed_at else None,
            attempts=state.attempts,
        )

    async def DeleteMemory(self, request: pb.DeleteMemoryRequest, _context: _Context) -> pb.DeleteMemoryResponse:
        """Removes a memory."""
        deleted = await self._said.delete(caller(), request.user_id, request.memory_id)
        current_call().degraded |= deleted.degraded
        return pb.DeleteMemoryResponse(derived=deleted.derived)

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


def _fact(fact: Belief) -> pb.Fact:
    return pb.Fact(
        id=fact.id,
        text=fact.text,
        subject=fact.who,
        predicate=fact.predicate,
        value=fact.value,
        confidence=fact.confidence,
        believed_since=stamp(fact.since),
        believed_until=stamp(fact.until) if fact.until is not None else None,
        valid_from=stamp(fact.valid_from) if fact.valid_from is not None else None,
        valid_to=stamp(fact.valid_to) if fact.valid_to is not None else None,
        source_ids=fact.sources,
    )
