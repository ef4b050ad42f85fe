"""The outbox of recorded events: one stream a partition, append-only, and what is read of it and of the chains.

An event that touches a known person's data lies in that person's partition, so that it can be written together with the
change; who, what and from where are sealed under the person's key. An event of nobody, or of somebody the stores do not
know, lies in a partition that follows from the tenant, and keeps only keyed hashes of user and address: recording a
read or a denial makes no subject. The sequencer takes from the outbox into the chains.

Each entry stands behind a MAC over its partition and its bytes. What has none was changed, or put in by somebody who may write
to the store and has no key: it is taken aside, chained nowhere, and named by `memoryos audit verify`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.ports import Subject
from memoryos_server.stores.chain import Taken
from memoryos_server.stores.keyring import MAC_BYTES, KeyringError
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_chain import RedisChain
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_subjects import USER, RedisSubjects
from memoryos_server.stores.scope import PARTITIONS, Partition
from memoryos_server.stores.sealing import SealBroken, Sealer

_log = logging.getLogger(__name__)

_BATCH_LIFE = 600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = timedelta(microseconds=1)
_PAGE = 64
_TEXTS = ("id", "type", "tenant", "action", "outcome", "actor", "request", "details")
_MORE_TEXTS = ("user", "address", "subject")
_MOST_MICROS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICRO
_MOST_COUNT = 2**31

_MOST_HASHES = 8192
_MOST_REFUSED = 1000
_REFUSED_LIFE = 90 * 86_400

People = Mapping[tuple[str, str], tuple[Subject, Sealer]]
"""(tenant, user) -> who that is, of those who are known."""

_APPEND = Script(
    "append_audit",
    """
    -- KEYS audit, batch. ARGV life of the batch's name (s), then per event: event, who. Sent again, it writes nothing.
    if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[1]) then return 0 end
    for i = 2, #ARGV, 2 do redis.call('XADD', KEYS[1], '*', 'e', ARGV[i], 'w', ARGV[i + 1]) end
    return (#ARGV - 1) / 2
    """,
)

_REFUSE = Script(
    "refuse_audit",
    """
    -- KEYS audit, refused. ARGV how many refused entries are kept, and for how long (s); then the ids of entries.
    local refused = 0
    for i = 3, #ARGV do
      local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
      if found then
        local kept = {e = '', w = ''}
        for k = 1, #found[2], 2 do kept[found[2][k]] = string.sub(found[2][k + 1], 1, 4096) end
        local aside = {KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'i', ARGV[i], 'e', kept.e, 'w', kept.w}
        local added = redis.pcall('XADD', unpack(aside))
        if type(added) == 'table' and added.err and string.find(added.err, 'OOM', 1, true) then
          return added  -- the store is full: another time
        end
        if type(added) == 'table' and added.err then  -- somebody made another thing of it: it must not keep entries here
          redis.call('DEL', KEYS[2])
          redis.call('XADD', unpack(aside))
        end
        refused = refused + redis.call('XDEL', KEYS[1], ARGV[i])
      end
    end
    redis.call('EXPIRE', KEYS[2], ARGV[2])
    return refused
    """,
)

SCRIPTS = (_APPEND, _REFUSE)


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something that no server of this store wrote into an outbox as it stands there, or stood.

    Attributes:
        tenant_id: Whose event it says it is; "" if it says nothing.
        key: Where it lies now.
        entry: Its id there.
        stood: Its id in the outbox.
    """

    tenant_id: str
    key: str
    entry: str
    stood: str


@dataclass(frozen=True, slots=True)
class Named:
    """A user as records show one.

    Attributes:
        user: The keyed hash of tenant and user.
        subject_id: Who has that name now; "" if nobody has.
    """

    user: str
    subject_id: str

    def is_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is about that user, and not about somebody who had the name before, and is erased."""
        return record.get("user") == self.user and record.get("subject", "") in ("", self.subject_id)


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
        chain: The chains.

    Attributes:
        some: Set whenever something was written that the sequencer may take.
    """

    def __init__(self, client: Client, manifest: Manifest, subjects: RedisSubjects, chain: RedisChain) -> None:
        self._client = client
        self._secrets = manifest.secrets
        self._subjects = subjects
        self._chain = chain
        self._written: set[int] = set()
        # Of what is recorded many times a second: the same people, from the same addresses.
        self._hash = lru_cache(_MOST_HASHES)(manifest.secrets.hash)
        self.some = asyncio.Event()

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Records events durably, in order within a partition. The same events given again are not written again.

        Raises:
            BackendDown: The store does not answer. Some of several partitions' events may have been written.
        """
        batches: dict[int, list[bytes]] = {}  # event and who in turn
        names: dict[int, list[str]] = {}
        people = await self.people(events)
        for event in events:
            about = about_whom(event, people)
            number = about[0].partition if about else self._chain.home(event.tenant_id).number
            stored = self.entry(event, *about) if about else self.entry(event)
            batches.setdefault(number, []).extend(stored)
            names.setdefault(number, []).append(event.id)
        for number, stored_events in batches.items():
            partition = Partition(number)
            # The same events make the same batch, so that one that is sent again after an error is not written twice.
            batch = hashlib.blake2b("".join(names[number]).encode(), digest_size=8).hexdigest()
            keys = [partition.audit, partition.audit_batch(batch)]
            try:
                await self._client.script(_APPEND, keys, [_BATCH_LIFE, *stored_events])
            finally:
                self.wrote(number)

    def wrote(self, partition: int) -> None:
        """Says that an event may have been written into a partition's outbox; to be called after the attempt."""
        self._written.add(partition)
        self.some.set()

    def written(self) -> set[int]:
        """The partitions that `wrote` named since this was asked last."""
        found, self._written = self._written, set()
        self.some.clear()
        return found

    async def people(self, events: Sequence[AuditEvent]) -> People:
        """Who the events are about, as far as that is somebody known.

        Raises:
            BackendDown: The store does not answer.
        """
        known = (event for event in events if event.user_id and not event.outlives)
        named = list(dict.fromkeys((event.tenant_id, event.user_id) for event in known))
        found = {whose: await self._about(*whose) for whose in await self._subjects.known(named)}
        return {whose: about for whose, about in found.items() if about}

    async def _about(self, tenant_id: str, user_id: str) -> tuple[Subject, Sealer] | None:
        """A known person; None if his key is damaged: events are written all the same."""
        try:
            subject = await self._subjects.find(tenant_id, user_id)
            sealer = await self._sealer(subject) if subject else None
        except (SealBroken, KeyringError) as error:
            _log.error("an audit event is written without its person, whose key does not open: %s", error)
            return None
        return (subject, sealer) if subject and sealer else None

    async def named(self, tenant_id: str, user_id: str) -> Named | None:
        """What stands in records for a user; None for none.

        Raises:
            BackendDown: The store does not answer.
        """
        if not user_id:
            return None
        return Named(self._subjects.lookup(tenant_id, user_id), await self._subjects.present(tenant_id, user_id))

    async def opened(self, records: Sequence[tuple[dict[str, Any], bytes]]) -> list[AuditEvent]:
        """Events that were stored, and who they are about."""
        return [await self._event(record, who) for record, who in records]

    async def total(self, tenant_id: str | None = None) -> int:
        """The number of events that were ever recorded, of a tenant or of all: archived, chained, and in the outbox."""
        waiting: dict[str, list[Taken]] = {}
        async for tenant, taken in self.outbox():
            if tenant_id in (None, tenant):
                waiting.setdefault(tenant, []).append(taken)
        # The heads are read after the outbox, so that an event that is chained meanwhile counts once.
        tenants = {*waiting, *(await self._chain.tenants())} if tenant_id is None else {tenant_id}
        total = 0
        for tenant in tenants:
            head = await self._chain.head(tenant)
            total += head.count
            total += sum(not head.has(taken) for taken in waiting.get(tenant, []))
        return total

    async def outbox(self) -> AsyncIterator[tuple[str, Taken]]:
        """What servers wrote into the outboxes, and whose it is, partition by partition."""
        async for number, entry, fields in self._entries(lambda partition: partition.audit):
            if (taken := self.taken(number, entry, fields)) is not None:
                yield whose(taken.event), taken

    async def strangers(self) -> AsyncIterator[Stranger]:
        """What no server wrote, in the outboxes and taken aside."""
        seen = set()
        async for number, entry, fields in self._entries(lambda partition: partition.audit):
            if self.taken(number, entry, fields) is None:
                seen.add((number, entry))
                yield _stranger(Partition(number).audit, entry, entry, fields)
        async for number, entry, fields in self._entries(lambda partition: partition.audit_refused):
            stood = fields.get(b"i", b"")
            if (number, stood) not in seen:  # else it was taken aside meanwhile
                yield _stranger(Partition(number).audit_refused, entry, stood, fields)

    async def refuse(self, partition: int, entries: Sequence[bytes]) -> int:
        """Takes entries of an outbox aside that no server wrote; how many there were.

        Raises:
            BackendDown: The store does not answer; the same may be refused again.
        """
        place = Partition(partition)
        return int(
            await self._client.script(
                _REFUSE, [place.audit, place.audit_refused], [_MOST_REFUSED, _REFUSED_LIFE, *entries]
            )
        )

    async def _entries(self, of: Callable[[Partition], str]) -> AsyncIterator[tuple[int, bytes, Mapping[bytes, bytes]]]:
        """Partition, id and fields of what lies in one stream of each partition."""
        lengths = await self._client.lengths([of(Partition(number)) for number in range(PARTITIONS)])
        for number, length in enumerate(lengths):
            start = "-"
            while length and (
                page := await self._client.run("XRANGE", of(Partition(number)), start, "+", "COUNT", 512)
            ):
                for entry, fields in page:
                    yield number, entry, fields
                start = "(" + page[-1][0].decode()

    async def tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[AuditEvent]:
        """The newest events of a tenant (None: of all) that are not archived, oldest of them first.

        User, address and resource are "" where they were never kept, or where the person is erased.
        """
        if limit < 1:
            return
        readings = [_Reading(Partition(number)) for number in range(PARTITIONS)]
        wanted = readings
        while wanted:
            await self._read_back(wanted, tenant_id, limit)
            waiting = (item for reading in readings for item in reading.found)
            newest = sorted(waiting, key=lambda item: item[0])[-limit:]
            # Only a partition whose read part ends within the newest may still hold one of them.
            floor = newest[0][0][0] if len(newest) == limit else 0
            wanted = [reading for reading in readings if not reading.done and reading.oldest >= floor]
        # What is chained while this is read is found twice, and told once.
        found = {record["id"]: (record, who) for _, record, who in newest}
        for tenant in await self._chain.tenants() if tenant_id is None else [tenant_id]:
            for link in await self._chain.back(tenant, most=limit):
                if record := parsed(link.event):
                    found[record["id"]] = record, link.who
        # Reads are written up to a second later than they happened: shown in the order in which things happened.
        for record, who in sorted(found.values(), key=lambda item: (item[0]["ts"], item[0]["id"]))[-limit:]:
            yield await self._event(record, who)

    def entry(
        self, event: AuditEvent, subject: Subject | None = None, sealer: Sealer | None = None
    ) -> tuple[bytes, bytes]:
        """An event as it lies in an outbox, that of the subject's partition or else of its tenant's: `stored`, with a MAC.

        Whoever writes it calls `wrote` afterwards, or it is chained some seconds later.
        """
        partition = self._chain.home(event.tenant_id).number if subject is None else subject.partition
        record, who = self.stored(event, sealer, subject.id if subject else "")
        return record, self._mac(partition, record, who) + who

    def taken(self, partition: int, entry: bytes, fields: Mapping[bytes, bytes]) -> Taken | None:
        """What an entry of an outbox says; None if no server of this store wrote it so, and there."""
        event, behind = fields.get(b"e", b""), fields.get(b"w", b"")
        mac, who = behind[:MAC_BYTES], behind[MAC_BYTES:]
        if len(fields) != 2 or not hmac.compare_digest(mac, self._mac(partition, event, who)):
            return None
        return Taken(partition, entry.decode(), event, who)

    def _mac(self, partition: int, event: bytes, who: bytes) -> bytes:
        return self._secrets.mac("audit outbox", str(partition), event, who)

    def stored(self, event: AuditEvent, sealer: Sealer | None = None, subject_id: str = "") -> tuple[bytes, bytes]:
        """An event as it is chained, and who it is about: sealed for a known subject; of others keyed hashes."""
        record: dict[str, Any] = {
            "id": event.id,
            "ts": (event.timestamp - _EPOCH) // _MICRO,
            "type": event.event_type,
            "tenant": event.tenant_id,
            "action": event.action,
            "outcome": event.outcome,
            "actor": event.actor,
            "request": event.request_id,
            "details": event.details,
        }
        if event.user_id:
            record["user"] = self._hash(USER, event.tenant_id, event.user_id)
        if event.address:
            record["address"] = self._hash("address", event.address)
        if event.count != 1:
            record["count"] = event.count
        if sealer is None:
            # An address without a person: a bad key's, say. There is no person's key to seal it under.
            who = orjson.dumps(["" if event.user_id else event.address, event.resource])
            return orjson.dumps(record), self._secrets.seal("audit", event.id, who)
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
                taken = self.taken(reading.partition.number, stream_id, fields)
                record = parsed(taken.event) if taken else None
                if taken and record and (tenant_id is None or record["tenant"] == tenant_id):
                    reading.found.append(((millis, record["ts"], sequence), record, taken.who))

    async def _event(self, record: dict[str, Any], who: bytes) -> AuditEvent:
        user_id, address, resource = "", "", ""
        try:
            if subject_id := record.get("subject"):
                subject = await self._subjects.by_id(subject_id)
                sealer = await self._sealer(subject) if subject else None
                if sealer is not None:
                    user_id, address, resource = orjson.loads(sealer.open(record["id"], who))
            else:
                address, resource = orjson.loads(self._secrets.open("audit", record["id"], who))
        except (SealBroken, ValueError):
            pass  # sealed under a key that an erasure destroyed, or tampered with, which is not this place's to tell
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
            count=record.get("count", 1),
        )

    async def _sealer(self, subject: Subject) -> Sealer | None:
        try:
            return await self._subjects.sealer(subject)
        except Stale:
            return None


def about_whom(event: AuditEvent, people: People) -> tuple[Subject, Sealer] | None:
    """Under whose key it is sealed who an event is about; None: under nobody's."""
    return None if event.outlives else people.get((event.tenant_id, event.user_id))


def parsed(event: bytes) -> dict[str, Any] | None:
    """A stored record; None for what is none, or could not be shown as an event."""
    try:
        record = orjson.loads(event)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("ts")) is not int or type(record.get("count", 1)) is not int:
        return None
    texts = all(isinstance(record.get(name), str) for name in _TEXTS)
    more = all(isinstance(record.get(name, ""), str) for name in _MORE_TEXTS)
    in_range = 0 <= record["ts"] <= _MOST_MICROS and 0 <= record.get("count", 1) < _MOST_COUNT
    return record if texts and more and in_range else None


def whose(event: bytes) -> str:
    """Whose chain a stored record belongs to: of what is no record, the one that is nobody's."""
    record = parsed(event)
    return str(record["tenant"]) if record else SYSTEM_TENANT


def _stranger(key: str, entry: bytes, stood: bytes, fields: Mapping[bytes, bytes]) -> Stranger:
    record = parsed(fields.get(b"e", b""))
    tenant = str(record["tenant"]) if record else ""
    return Stranger(tenant, key, entry.decode(), stood.decode(errors="replace"))
