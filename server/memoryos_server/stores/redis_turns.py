"""The acceptance of turns: one script, one slot, one durable write."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.consent import withdrawn
from memoryos_server.domain.core.faults import Exists, Stale
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.ports import Acceptance, EventState, Session, Subject, Turn
from memoryos_server.stores import redis_marks, redis_sessions, redis_subjects
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_marks import DAY, entry_id, raw_id, state_of, text_id
from memoryos_server.stores.redis_sessions import list_sessions, millis, seal_session
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import SealBroken, Sealer

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NONCE = 8
_ID = 16
_SEQ = 4

# Marks lie in one hash a day. Yesterday's and tomorrow's are looked at too, so a mark is remembered for 24..48 h, also
# by replicas whose clocks differ. The nonce in a mark is the call's own: a command that was sent again because its
# answer was lost meets its own marks and answers as it did.
_ACCEPT = Script(
    "accept",
    redis_marks.LUA
    + redis_sessions.LUA
    + redis_subjects.CONSENT
    + """
    -- KEYS subject record, recent, queue, audit, sessions, sessions by activity, marks of today, yesterday, tomorrow.
    -- ARGV epoch, subject id, nonce, marks' life (s; 0: nothing new is kept), turns kept as recent, their life (s),
    --      audit event or '', who, '1' if nothing is kept without consent, then per turn: mark, fingerprint, memory id,
    --      sealed turn, session field, sealed session, time (ms).
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {'stale'} end
    if is_withheld(KEYS[1], ARGV[1], ARGV[9]) then return {'withheld'} end
    local nonce, seen, fresh, out = ARGV[3], {}, {}, {'ok'}
    for i = 10, #ARGV, 7 do
      local mark, print = ARGV[i], ARGV[i + 1]
      local known = seen[mark] or find_mark(mark, 7, 9)
      local at = (i - 10) / 7
      out[2 * at + 2], out[2 * at + 3] = '', 0
      if not known then
        fresh[#fresh + 1] = i
      elseif string.sub(known, 1, 16) ~= print then
        return {'conflict', tostring(at)}
      elseif string.sub(known, 17, 24) == nonce then
        out[2 * at + 2], out[2 * at + 3] = entry_of(known), struct.unpack('>I4', known, 35)
      end
      seen[mark] = print
    end
    if #fresh == 0 then return out end
    if ARGV[4] == '0' then return {'new'} end
    local last = redis.call('HINCRBY', KEYS[1], 'seq', #fresh)
    local sessions, order = {}, {}
    for n, i in ipairs(fresh) do
      local mark, id, sealed, session, at = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], tonumber(ARGV[i + 6])
      local seq = last - #fresh + n
      local entry = redis.call('XADD', KEYS[3], '*', 's', ARGV[2], 'e', ARGV[1], 'q', seq, 'm', mark, 'i', id, 't', sealed)
      seq = struct.pack('>I4', seq)
      redis.call('RPUSH', KEYS[2], id .. seq .. sealed)
      redis.call('HSET', KEYS[7], mark, ARGV[i + 1] .. nonce .. place(entry) .. seq .. 'a')
      local counted = sessions[session]
      if counted then
        counted[1], counted[2], counted[3] = counted[1] + 1, math.min(counted[2], at), math.max(counted[3], at)
      else
        sessions[session] = {1, at, at, ARGV[i + 5]}
        order[#order + 1] = session
      end
      local place_in_batch = (i - 10) / 7
      out[2 * place_in_batch + 2], out[2 * place_in_batch + 3] = entry, last - #fresh + n
    end
    for _, session in ipairs(order) do
      count_session(KEYS[5], KEYS[6], session, unpack(sessions[session]))
    end
    redis.call('LTRIM', KEYS[2], -tonumber(ARGV[5]), -1)
    redis.call('EXPIRE', KEYS[2], ARGV[6])
    redis.call('EXPIRE', KEYS[7], ARGV[4])
    if ARGV[7] ~= '' then redis.call('XADD', KEYS[4], '*', 'e', ARGV[7], 'w', ARGV[8]) end
    return out
    """,
)

SCRIPTS = (_ACCEPT,)


class RedisTurns:
    """The port `Turns`.

    Args:
        client: The connection.
        subjects: Who is known.
        audit: Makes the stored form of events.
        keep: How many turns the short-term memory holds.
        ttl_seconds: How long after the last turn it lasts.
        consent_required: Whether nothing is kept of who did not agree to it; else only of who objected.
        now: Unix seconds.
    """

    def __init__(
        self,
        client: Client,
        subjects: RedisSubjects,
        audit: RedisAudit,
        *,
        keep: int = 20,
        ttl_seconds: int = 3600,
        consent_required: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._subjects = subjects
        self._audit = audit
        self._keep = max(1, keep)
        self._ttl = max(1, ttl_seconds)
        self._required = int(consent_required)
        self._now = now

    async def accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None = None, *, repeats_only: bool = False
    ) -> list[Acceptance]:
        """Keeps turns in one atomic, durable write: idempotency mark + turn + queue entry + session + audit event.

        All or nothing over `turns`, in order. A turn whose event_id is remembered (24 h at least) is a duplicate and
        writes nothing; what must agree is role, content, session and name, not the time. The audit event is written if
        any turn is. With `repeats_only` nothing is written at all: if any turn is new the answer is empty.

        Raises:
            Exists: reason `event_id_conflict`; an event_id is remembered with other content. Nothing was written.
            Stale: The subject's epoch is over. Nothing was written.
            Forbidden: reason `consent_withdrawn`: the person may not be remembered. Nothing was written.
            BackendDown: The store does not answer. Whether it wrote is not known; the same turns may come again.
        """
        if not turns:
            return []
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        args: list[str | bytes | int] = [
            subject.epoch,
            subject.id,
            os.urandom(_NONCE),
            0 if repeats_only else redis_marks.LIFE,
            self._keep,
            self._ttl,
            *(self._audit.entry(audit, subject, sealer) if audit else (b"", b"")),
            self._required,
        ]
        fields: dict[str, tuple[bytes, bytes]] = {}
        for turn in turns:
            if (session := fields.get(turn.session_id)) is None:
                field = scope.session_field(turn.session_id)
                session = fields[turn.session_id] = field, seal_session(sealer, field, turn.session_id)
            args += [scope.mark(turn.event_id), _fingerprint(sealer, turn), raw_id(turn.id), seal_turn(sealer, turn)]
            args += [*session, millis(turn.timestamp)]
        try:
            answer = await self._client.script(_ACCEPT, self._keys(scope), args)
        finally:
            if audit:
                self._audit.wrote(subject.partition)
        verdict = answer[0]
        if verdict == b"stale":
            self._subjects.forget(subject.id)
            raise Stale("The user's data was erased meanwhile")
        if verdict == b"withheld":
            self._subjects.heard(subject.id)  # what is cached of it may be older
            raise withdrawn()
        if verdict == b"new":
            return []
        if verdict == b"conflict":
            raise Exists(
                "event_id was used before with other content",
                reason="event_id_conflict",
                param="event_id",
                metadata={"index": answer[1].decode()},
            )
        return [
            Acceptance(turn.id, not entry, entry_id(subject.partition, entry) if entry else "", seq)
            for turn, entry, seq in zip(turns, answer[1::2], answer[2::2], strict=True)
        ]

    async def recent(self, subject: Subject, limit: int) -> list[Turn]:
        """The newest unexpired turns, oldest first, at most `limit`."""
        if limit < 1:
            return []
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        found = []
        for raw in await self._client.run("LRANGE", scope.recent, -limit, -1):
            seq = int.from_bytes(raw[_ID : _ID + _SEQ])
            try:
                found.append(open_turn(sealer, raw[:_ID], raw[_ID + _SEQ :], seq))
            except SealBroken:
                log.warning("a recent turn of subject %s cannot be opened", subject.id)
        return found

    async def accepted(self, subject: Subject) -> int:
        """How many turns of a subject were accepted so far, by whichever process."""
        scope = await self._subjects.scope(subject)
        return int(await self._client.run("HGET", scope.record, "seq") or 0)

    async def state(self, subject: Subject, event_id: str) -> EventState | None:
        """What became of an event; None if it is not remembered: marks last 24 h at least, those of dead letters longer."""
        scope = await self._subjects.scope(subject)
        mark = scope.mark(event_id)
        memory_id = derived_uuid(subject.tenant_id, subject.id, event_id)
        today = int(self._now() // DAY)
        # All that may still be there, the newest first: an event that came again after a day has two.
        commands = [("HGET", scope.marks(day), mark) for day in range(today + 1, today - 5, -1)]
        *marks, dead = await self._client.batch([*commands, ("HGET", scope.partition.dead_marks, mark)])
        found = next((one for one in marks if one is not None), None)
        if found is None:
            return EventState(event_id, memory_id, "dead_letter") if dead else None
        state, entry = state_of(found, event_id, memory_id)
        if state.state == "accepted":
            counted = await self._client.run("HGET", scope.partition.attempts, entry)
            return replace(state, attempts=int.from_bytes(counted[:2]) if counted else 0)
        return state

    async def sessions(self, subject: Subject, after: str, limit: int) -> tuple[list[Session], str]:
        """Conversations, last active first, from behind the cursor `after` ("" for the beginning), and the next cursor.

        Raises:
            Invalid: `after` is no cursor.
        """
        scope = await self._subjects.scope(subject)
        return await list_sessions(self._client, scope, await self._subjects.sealer(subject), after, limit)

    def _keys(self, scope: Scope) -> list[str]:
        today = int(self._now() // DAY)
        return [
            scope.record,
            scope.recent,
            scope.partition.queue,
            scope.partition.audit,
            scope.sessions,
            scope.active,
            scope.marks(today),
            scope.marks(today - 1),
            scope.marks(today + 1),
        ]


def seal_turn(sealer: Sealer, turn: Turn) -> bytes:
    """A turn as it is stored. Its id stands outside, in clear: it is what the seal is bound to."""
    micros = (turn.timestamp - _EPOCH) // timedelta(microseconds=1)
    record = [turn.event_id, turn.session_id, turn.role, turn.name, turn.content, micros]
    return sealer.seal(turn.id, orjson.dumps(record))


def open_turn(sealer: Sealer, raw: bytes, sealed: bytes, seq: int) -> Turn:
    """The turn that `seal_turn` took, with its place in the order of acceptance.

    Raises:
        SealBroken: It does not open with the subject's present key.
    """
    memory_id = text_id(raw)
    try:
        event_id, session_id, role, name, content, micros = orjson.loads(sealer.open(memory_id, sealed))
    except ValueError:  # only where nothing is sealed can what opens be damaged
        raise SealBroken("a turn is not of the form in which turns are stored") from None
    return Turn(memory_id, event_id, session_id, role, name, content, _EPOCH + timedelta(microseconds=micros), seq)


def _fingerprint(sealer: Sealer, turn: Turn) -> bytes:
    said = orjson.dumps([turn.role, turn.content, turn.session_id, turn.name]).decode()
    return bytes.fromhex(sealer.equality("turn", said))
