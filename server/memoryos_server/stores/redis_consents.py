"""What people agree to, on the Redis side: one hash a subject, sealed, in the subject's slot.

What is decided of `data_processing` stands in the subject's record besides, as one digit after the epoch: the scripts that
accept work read it in the same write, and whoever loads a subject learns it without asking. A digit of an earlier epoch
counts for nothing, so an erasure ends it with the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.consent import PROCESSING
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.consents import Consent
from memoryos_server.stores import redis_subjects
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_marks import raw_id, text_id
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import CHANGES
from memoryos_server.stores.sealing import Sealer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID = 16
_NUMBER = 4
_LAST = b"="
"""What fields of last decisions begin with; those of all decisions are 16 bytes."""

_RECORD = Script(
    "record_consent",
    """
    -- KEYS subject record, consents, audit. ARGV epoch, subject id, decision's id, sealed decision, field of the purpose's
    --      last decision, '1' or '0' of data_processing, else '', channel, kind of message, audit event or '', who.
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
    -- Said even if it is there already: a call sent again must reach everybody too.
    if ARGV[6] ~= '' then redis.call('PUBLISH', ARGV[7], ARGV[8] .. ' ' .. ARGV[2]) end
    if redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then return 1 end
    local value = struct.pack('>I4', redis.call('HLEN', KEYS[2])) .. ARGV[3] .. ARGV[4]
    redis.call('HSET', KEYS[2], ARGV[3], value, ARGV[5], value)
    if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'consent', ARGV[1] .. ':' .. ARGV[6]) end
    if ARGV[9] ~= '' then redis.call('XADD', KEYS[3], '*', 'e', ARGV[9], 'w', ARGV[10]) end
    return 1
    """,
)

SCRIPTS = (_RECORD,)


class RedisConsents:
    """The port `ConsentStore`.

    Args:
        client: The connection.
        subjects: Who is known, and what counts for `data_processing`.
        audit: Makes the stored form of events.
    """

    def __init__(self, client: Client, subjects: RedisSubjects, audit: RedisAudit) -> None:
        self._client = client
        self._subjects = subjects
        self._audit = audit

    async def record(self, subject: Subject, consent: Consent, audit: AuditEvent | None) -> None:
        """Keeps a decision with its audit event in one atomic, durable write; again does no harm.

        Raises:
            Stale: The subject's epoch is over. Nothing was written.
            BackendDown: The store does not answer. Whether it wrote is not known; the same decision may come again.
        """
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        micros = (consent.recorded_at - _EPOCH) // timedelta(microseconds=1)
        sealed = sealer.seal(
            _place(consent.id), orjson.dumps([consent.purpose, consent.granted, micros, consent.actor])
        )
        args: list[str | bytes | int] = [
            subject.epoch,
            subject.id,
            raw_id(consent.id),
            sealed,
            _LAST + scope.consent(consent.purpose),
            ("1" if consent.granted else "0") if consent.purpose == PROCESSING else "",
            CHANGES,
            redis_subjects.KIND,
            *(self._audit.entry(audit, subject, sealer) if audit else (b"", b"")),
        ]
        try:
            kept = await self._client.script(_RECORD, [scope.record, scope.consents, scope.partition.audit], args)
        finally:
            if audit:
                self._audit.wrote(subject.partition)
        # Here at once, elsewhere when the message comes; and a subject whose epoch is over is to be forgotten anyway.
        self._subjects.heard(subject.id)
        if not kept:
            raise Stale("The user's data was erased meanwhile")

    async def last(self, subject: Subject, purpose: str) -> Consent | None:
        """The decision that counts, or None if there is none.

        Raises:
            Stale: The subject's epoch is over.
            BackendDown: The store does not answer.
        """
        scope = await self._subjects.scope(subject)
        found = await self._client.run("HGET", scope.consents, _LAST + scope.consent(purpose))
        return None if found is None else _opened(await self._subjects.sealer(subject), found)

    async def history(self, subject: Subject) -> list[Consent]:
        """Every decision, in the order in which they were kept.

        Raises:
            As `last`.
        """
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        found = await self._client.run("HGETALL", scope.consents)
        kept = sorted(value for field, value in found.items() if len(field) == _ID)
        return [_opened(sealer, value) for value in kept]

    async def processing(self, subject: Subject) -> bool | None:
        """What counts for `data_processing`, None for no decision.

        Raises:
            BackendDown: The subject is not cached and the store does not answer.
        """
        return await self._subjects.consent(subject)


def _opened(sealer: Sealer, value: bytes) -> Consent:
    # The number of decisions before it, its id, and the rest sealed.
    made = text_id(value[_NUMBER : _NUMBER + _ID])
    purpose, granted, micros, actor = orjson.loads(sealer.open(_place(made), value[_NUMBER + _ID :]))
    return Consent(made, purpose, granted, _EPOCH + timedelta(microseconds=micros), actor)


def _place(consent_id: str) -> str:
    return f"consent:{consent_id}"
