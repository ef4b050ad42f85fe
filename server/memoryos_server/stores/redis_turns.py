"""The acceptance of turns: one script, one slot, one durable write."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import orjson

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import Exists, Stale
from memoryos_server.domain.ports import Acceptance, Subject, Turn
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import SealBroken, Sealer

log = logging.getLogger(__name__)

_DAY = 86_400
_MARKS_LIFE = 3 * _DAY
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NONCE = 8
_ID = 16

# Marks lie in one hash a day. Yesterday's and tomorrow's are looked at too, so a mark is remembered for 24..48 h, also
# by replicas whose clocks differ. A mark is fingerprint (16) + nonce (8) + queue entry. The nonce is the call's own: a
# command that was sent again because its answer was lost meets its own marks and answers as it did.
_ACCEPT = Script(
    "accept",
    """
    -- KEYS subject record, recent, queue, audit, marks of today, yesterday, tomorrow.
    -- ARGV epoch, subject id, nonce, marks' life (s), turns kept as recent, their life (s), audit event or '', who,
    --      then per turn: mark, fingerprint, memory id, sealed turn.
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {'stale'} end
    local nonce, seen, fresh, out = ARGV[3], {}, {}, {'ok'}
    for i = 9, #ARGV, 4 do
      local mark, print = ARGV[i], ARGV[i + 1]
      local known = seen[mark]
      if not known then
        for k = 5, 7 do
          known = redis.call('HGET', KEYS[k], mark)
          if known then break end
        end
      end
      local at = (i - 9) / 4
      if not known then
        fresh[#fresh + 1] = i
        out[at + 2] = 'new'
      elseif string.sub(known, 1, 16) ~= print then
        return {'conflict', tostring(at)}
      elseif string.sub(known, 17, 24) == nonce then
        out[at + 2] = string.sub(known, 25)
      else
        out[at + 2] = ''
      end
      seen[mark] = print
    end
    if #fresh == 0 then return out end
    for _, i in ipairs(fresh) do
      local entry = redis.call('XADD', KEYS[3], '*', 's', ARGV[2], 'e', ARGV[1], 'i', ARGV[i + 2], 't', ARGV[i + 3])
      redis.call('RPUSH', KEYS[2], ARGV[i + 2] .. ARGV[i + 3])
      redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1] .. nonce .. entry)
      out[(i - 9) / 4 + 2] = entry
    end
    redis.call('LTRIM', KEYS[2], -tonumber(ARGV[5]), -1)
    redis.call('EXPIRE', KEYS[2], ARGV[6])
    redis.call('EXPIRE', KEYS[5], ARGV[4])
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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._subjects = subjects
        self._audit = audit
        self._keep = max(1, keep)
        self._ttl = max(1, ttl_seconds)
        self._now = now

    async def accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None = None
    ) -> list[Acceptance]:
        """Keeps turns in one atomic, durable write: idempotency mark + turn + queue entry + audit event.

        All or nothing over `turns`, in order. A turn whose event_id is remembered (24 h at least) is a duplicate and
        writes nothing; what must agree is role, content, session and name, not the time. The audit event is written if
        any turn is.

        Raises:
            Exists: reason `event_id_conflict`; an event_id is remembered with other content. Nothing was written.
            Stale: The subject's epoch is over. Nothing was written.
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
            _MARKS_LIFE,
            self._keep,
            self._ttl,
            *(self._audit.stored(audit, sealer, subject.id) if audit else (b"", b"")),
        ]
        for turn in turns:
            args += [scope.mark(turn.event_id), _fingerprint(sealer, turn), _id_bytes(turn), seal_turn(sealer, turn)]
        answer = await self._client.script(_ACCEPT, self._keys(scope), args)
        verdict = answer[0]
        if verdict == b"stale":
            self._subjects.forget(subject.id)
            raise Stale("The user's data was erased meanwhile")
        if verdict == b"conflict":
            raise Exists(
                "event_id was used before with other content",
                reason="event_id_conflict",
                param="event_id",
                metadata={"index": answer[1].decode()},
            )
        return [
            Acceptance(turn.id, not entry, entry_id(subject.partition, entry) if entry else "")
            for turn, entry in zip(turns, answer[1:], strict=True)
        ]

    async def recent(self, subject: Subject, limit: int) -> list[Turn]:
        """The newest unexpired turns, oldest first, at most `limit`."""
        if limit < 1:
            return []
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        found = []
        for raw in await self._client.run("LRANGE", scope.recent, -limit, -1):
            try:
                found.append(open_turn(sealer, raw[:_ID], raw[_ID:]))
            except SealBroken:
                log.warning("a recent turn of subject %s cannot be opened", subject.id)
        return found

    def _keys(self, scope: Scope) -> list[str]:
        today = int(self._now() // _DAY)
        return [
            scope.record,
            scope.recent,
            scope.partition.queue,
            scope.partition.audit,
            scope.marks(today),
            scope.marks(today - 1),
            scope.marks(today + 1),
        ]


def entry_id(partition: int, stream_id: bytes) -> str:
    """The name of a queue entry: `partition/stream id`."""
    return f"{partition}/{stream_id.decode()}"


def seal_turn(sealer: Sealer, turn: Turn) -> bytes:
    """A turn as it is stored. Its id stands outside, in clear: it is what the seal is bound to."""
    micros = (turn.timestamp - _EPOCH) // timedelta(microseconds=1)
    record = [turn.event_id, turn.session_id, turn.role, turn.name, turn.content, micros]
    return sealer.seal(turn.id, orjson.dumps(record))


def open_turn(sealer: Sealer, raw_id: bytes, sealed: bytes) -> Turn:
    """The turn that `seal_turn` took.

    Raises:
        SealBroken: It does not open with the subject's present key.
    """
    memory_id = _uuid(raw_id)
    event_id, session_id, role, name, content, micros = orjson.loads(sealer.open(memory_id, sealed))
    return Turn(memory_id, event_id, session_id, role, name, content, _EPOCH + timedelta(microseconds=micros))


def _fingerprint(sealer: Sealer, turn: Turn) -> bytes:
    said = orjson.dumps([turn.role, turn.content, turn.session_id, turn.name]).decode()
    return bytes.fromhex(sealer.equality("turn", said))


def _id_bytes(turn: Turn) -> bytes:
    return bytes.fromhex(turn.id.replace("-", ""))


def _uuid(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
