"""The outbox of recorded events: one stream a partition, append-only.

An event that touches a known person's data lies in that person's partition, so that it can be written together with the
change; who, what and from where are sealed under the person's key. An event of nobody, or of somebody the stores do not
know, lies in a partition that follows from the tenant, and keeps only keyed hashes of user and address: recording a
read or a denial makes no subject. Nothing is removed here; chaining and archiving (`retention`) take from the outbox.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.ports import Subject
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import PARTITIONS, Partition, partition_of
from memoryos_server.stores.sealing import SealBroken, Sealer

_log = logging.getLogger(__name__)

_BATCH_LIFE = 600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE = 64

_APPEND = Script(
    "append_audit",
    """
    -- KEYS audit, batch. ARGV life of the batch's name (s), then per event: event, who. Sent again, it writes nothing.
    if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[1]) then return 0 end
    for i = 2, #ARGV, 2 do redis.call('XADD', KEYS[1], '*', 'e', ARGV[i], 'w', ARGV[i + 1]) end
    return (#ARGV - 1) / 2
    """,
)

SCRIPTS = (_APPEND,)


@dataclass(slots=True)
class _Reading:
    """How far back the stream of one partition was read."""

    partition: Partition
    before: str = "+"
    done: bool = False
    oldest: int = 0
    found: list[tuple[tuple[int, int, int], dict[str, Any], bytes]] = field(default_factory=list)


class RedisAudit:
    """The port `AuditLog`.

    Args:
        client: The connection.
        manifest: The opened store.
        subjects: Who is known.
    """

    def __init__(self, client: Client, manifest: Manifest, subjects: RedisSubjects) -> None:
        self._client = client
        self._secrets = manifest.secrets
        self._subjects = subjects

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Records events durably, in order within a partition. The same events given again are not written again.

        Raises:
            BackendDown: The store does not answer. Some of several partitions' events may have been written.
        """
        batches: dict[int, list[bytes]] = {}  # event and who in turn
        names: dict[int, list[str]] = {}
        # Many events at once are often one person's, and who is not known yet is asked for anew each time.
        people: dict[tuple[str, str], tuple[Subject, Sealer] | None] = {}
        for event in events:
            whose = (event.tenant_id, event.user_id)
            if whose not in people:
                people[whose] = await self._about(event)
            about = people[whose]
            number = about[0].partition if about else self._home(event.tenant_id).number
            stored = self.stored(event, about[1], about[0].id) if about else self.stored(event)
            batches.setdefault(number, []).extend(stored)
            names.setdefault(number, []).append(event.id)
        for number, stored_events in batches.items():
            partition = Partition(number)
            # The same events make the same batch, so that one that is sent again after an error is not written twice.
            batch = hashlib.blake2b("".join(names[number]).encode(), digest_size=8).hexdigest()
            keys = [partition.audit, partition.audit_batch(batch)]
            await self._client.script(_APPEND, keys, [_BATCH_LIFE, *stored_events])

    async def _about(self, event: AuditEvent) -> tuple[Subject, Sealer] | None:
        """Who an event is about; None if nobody known, or if his key is damaged: the event is written all the same."""
        if not event.user_id:
            return None
        try:
            subject = await self._subjects.find(event.tenant_id, event.user_id)
            sealer = await self._sealer(subject) if subject else None
        except (SealBroken, KeyringError) as error:
            _log.error("an audit event is written without its person, whose key does not open: %s", error)
            return None
        return (subject, sealer) if subject and sealer else None

    async def opened(self, records: Sequence[tuple[dict[str, Any], bytes]]) -> list[AuditEvent]:
        """Events that were stored, and who they are about."""
        return [await self._event(record, who) for record, who in records]

    async def total(self, tenant_id: str | None = None) -> int:
        """The number of events in the outbox, of a tenant or of all; those of a tenant are read for it."""
        lengths = await self._client.batch([("XLEN", Partition(number).audit) for number in range(PARTITIONS)])
        if tenant_id is None:
            return sum(lengths)
        readings = [_Reading(Partition(number)) for number, length in enumerate(lengths) if length]
        count = 0
        while readings := [reading for reading in readings if not reading.done]:
            await self._read_back(readings, tenant_id, _PAGE)
            for reading in readings:
                count += len(reading.found)
                reading.found = []
        return count

    async def tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[AuditEvent]:
        """The newest events of a tenant (None: of all), oldest of them first.

        User, address and resource are "" where they were never kept, or where the person is erased.
        """
        if limit < 1:
            return
        readings = [_Reading(Partition(number)) for number in range(PARTITIONS)]
        wanted = readings
        while wanted:
            await self._read_back(wanted, tenant_id, limit)
            found = (item for reading in readings for item in reading.found)
            newest = sorted(found, key=lambda item: item[0])[-limit:]
            # Only a partition whose read part ends within the newest may still hold one of them.
            floor = newest[0][0][0] if len(newest) == limit else 0
            wanted = [reading for reading in readings if not reading.done and reading.oldest >= floor]
        # Reads are written up to a second later than they happened: shown in the order in which things happened.
        for _, record, who in sorted(newest, key=lambda item: (item[1]["ts"], item[1]["id"])):
            yield await self._event(record, who)

    def stored(self, event: AuditEvent, sealer: Sealer | None = None, subject_id: str = "") -> tuple[bytes, bytes]:
        """An event as it is stored, and who it is about: sealed for a known subject; of others keyed hashes."""
        record: dict[str, Any] = {
            "id": event.id,
            "ts": (event.timestamp - _EPOCH) // timedelta(microseconds=1),
            "type": event.event_type,
            "tenant": event.tenant_id,
            "action": event.action,
            "outcome": event.outcome,
            "actor": event.actor,
            "request": event.request_id,
            "details": event.details,
        }
        if event.user_id:
            record["user"] = self._subjects.lookup(event.tenant_id, event.user_id)
        if event.address:
            record["address"] = self._secrets.hash("address", event.address)
        if sealer is None:
            record["resource"] = event.resource
            if event.user_id or not event.address:
                return orjson.dumps(record), b""
            # An address without a person: a bad key's, say. There is no person's key to seal it under.
            return orjson.dumps(record), self._secrets.seal("audit", event.id, event.address.encode())
        record["subject"] = subject_id
        # A resource may name what the person chose, such as a session: hence sealed with the rest.
        who = orjson.dumps([event.user_id, event.address, event.resource])
        return orjson.dumps(record), sealer.seal(event.id, who)

    async def _read_back(self, readings: Sequence[_Reading], tenant_id: str | None, limit: int) -> None:
        count = min(limit, _PAGE)
        pages = await self._client.batch(
            [("XREVRANGE", reading.partition.audit, reading.before, "-", "COUNT", count) for reading in readings]
        )
        for reading, page in zip(readings, pages, strict=True):
            reading.done = len(page) < count
            for stream_id, fields in page:
                reading.before = "(" + stream_id.decode()
                millis, sequence = (int(part) for part in stream_id.split(b"-"))
                reading.oldest = millis
                record = orjson.loads(fields[b"e"])
                if tenant_id is None or record["tenant"] == tenant_id:
                    reading.found.append(((millis, record["ts"], sequence), record, fields[b"w"]))

    async def _event(self, record: dict[str, Any], who: bytes) -> AuditEvent:
        user_id, address, resource = "", "", record.get("resource", "")
        if subject_id := record.get("subject"):
            subject = await self._subjects.by_id(subject_id)
            sealer = await self._sealer(subject) if subject else None
            if sealer is not None:
                with contextlib.suppress(SealBroken):  # sealed under a key that an erasure destroyed
                    user_id, address, resource = orjson.loads(sealer.open(record["id"], who))
        elif who:
            address = self._secrets.open("audit", record["id"], who).decode()
        return AuditEvent(
            id=record["id"],
            timestamp=_EPOCH + timedelta(microseconds=record["ts"]),
            event_type=record["type"],
            tenant_id=record["tenant"],
            user_id=user_id,
            resource=resource,
            action=record["action"],
            outcome=record["outcome"],
            actor=record["actor"],
            address=address,
            request_id=record["request"],
            details=record["details"],
        )

    async def _sealer(self, subject: Subject) -> Sealer | None:
        try:
            return await self._subjects.sealer(subject)
        except Stale:
            return None

    def _home(self, tenant_id: str) -> Partition:
        return partition_of(self._secrets.hash("audit", tenant_id))
