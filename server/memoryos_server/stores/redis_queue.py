"""The ledger: accepted work that is open, one stream a partition, and how it got there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.consent import withdrawn
from memoryos_server.domain.core.faults import Exists, Stale
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Change, Entry, Subject
from memoryos_server.stores import (
    redis_dead,
    redis_fresh,
    redis_leases,
    redis_marks,
    redis_sessions,
    redis_settling,
    redis_subjects,
    redis_waiting,
)
from memoryos_server.stores.change_form import opened_change, seal_change, without_gone
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_dead import DONE_LIFE, DeadLetters
from memoryos_server.stores.redis_fresh import FreshTurns
from memoryos_server.stores.redis_leases import Leases
from memoryos_server.stores.redis_marks import days_kept, entry_id, raw_id
from memoryos_server.stores.redis_settling import Settling
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.redis_turns import open_turn
from memoryos_server.stores.redis_waiting import Waiting
from memoryos_server.stores.scope import Partition, Scope, is_subject_id
from memoryos_server.stores.sealing import SealBroken

log = logging.getLogger(__name__)

_PAGE = 64
"""Entries read at once: turns may be large, and only a page of them is held."""

# An import may bring 64 MiB: others must not wait for it to be sealed.
_MANY = 200
_NONCE = 8

_SUBMIT = Script(
    "submit",
    redis_marks.LUA
    + redis_sessions.LUA
    + redis_fresh.LUA
    + redis_subjects.CONSENT
    + """
    -- KEYS subject record, queue, audit, changes, done, recent, fresh, due, sessions, sessions by activity, heat, attempts,
    --      dead, dead marks, then marks of the days of which there may still be some, newest first.
    -- ARGV epoch, subject id, revision or '', nonce, sealed change, life of `done` (s), audit event or '', who, life of marks
    --      (s), id that is made once or '', of what only adds '1' if it is not kept without consent, else '0', '' of
    --      what removes; then per id that goes: memory id, mark or '' (a record), session field or, of a record, its field
    --      among the dead marks.
    local done = redis.call('GET', KEYS[5])
    if done then return {'ok', done} end
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {'erased'} end
    if ARGV[11] ~= '' and is_withheld(KEYS[1], ARGV[1], ARGV[11]) then return {'withheld'} end
    if ARGV[3] ~= '' and (redis.call('HGET', KEYS[1], 'rev') or '0') ~= ARGV[3] then return {'changed'} end
    if ARGV[10] ~= '' and find_mark(ARGV[10], 15, #KEYS) then return {'gone'} end
    redis.call('HINCRBY', KEYS[1], 'rev', 1)
    local entry = redis.call('XADD', KEYS[2], '*', 's', ARGV[2], 'e', ARGV[1], 'c', ARGV[4])
    redis.call('HSET', KEYS[4], ARGV[4], ARGV[5])
    redis.call('SET', KEYS[5], entry, 'EX', ARGV[6])
    if ARGV[7] ~= '' then redis.call('XADD', KEYS[3], '*', 'e', ARGV[7], 'w', ARGV[8]) end
    if #ARGV == 11 then return {'ok', entry} end
    local gone = {}
    for i = 12, #ARGV, 3 do
      local id, mark, session = ARGV[i], ARGV[i + 1], ARGV[i + 2]
      gone[id] = true
      redis.call('HDEL', KEYS[11], id)
      if mark ~= '' then
        local dead = redis.call('HGET', KEYS[14], mark)
        if dead then
          redis.call('XDEL', KEYS[13], dead)
          redis.call('HDEL', KEYS[14], mark)
        end
        local known, key = find_mark(mark, 15, #KEYS)
        local again = false
        if known then
          local letter, open, attempts = letter_of(known), entry_of(known), 0
          if letter == 'a' then
            redis.call('XDEL', KEYS[2], open)
            redis.call('HDEL', KEYS[12], open)
          else
            attempts = string.byte(known, 46)
            again = letter == 'r' and string.sub(known, 48 + string.byte(known, 47)) == 'deleted'
          end
          if not again then set_state(key, mark, known, 'r', open, attempts, 'deleted', '') end
        end
        if not again then uncount_session(KEYS[9], KEYS[10], session, 1) end
      else
        -- Of a record, whose id is random or follows from an event id: that it was removed, among the marks of today.
        redis.call('HSET', KEYS[16], id, place(entry))
        redis.call('EXPIRE', KEYS[16], ARGV[9])
        -- A dead letter may hold it, and may come back when these marks are gone.
        if redis.call('XLEN', KEYS[13]) > 0 then redis.call('HSET', KEYS[14], session, place(entry)) end
      end
    end
    if redis.call('XLEN', KEYS[13]) == 0 then redis.call('DEL', KEYS[14]) end
    for _, turn in ipairs(redis.call('LRANGE', KEYS[6], 0, -1)) do
      if gone[string.sub(turn, 1, 16)] then redis.call('LREM', KEYS[6], 1, turn) end
    end
    if without(KEYS[7], gone) == 0 then redis.call('ZREM', KEYS[8], ARGV[2]) end
    return {'ok', entry}
    """,
)

SCRIPTS = (
    _SUBMIT,
    *redis_leases.SCRIPTS,
    *redis_settling.SCRIPTS,
    *redis_fresh.SCRIPTS,
    *redis_dead.SCRIPTS,
    *redis_waiting.SCRIPTS,
)


class RedisQueue(Leases, Settling, FreshTurns, DeadLetters, Waiting):
    """The port `Queue`.

    Args:
        client: The connection.
        subjects: Who is known.
        audit: Makes the stored form of events.
        full: How many fresh turns are due for consolidation at once.
        idle_seconds: How long after a subject's last turn fewer of them are due.
        holder: Under which name it holds leases; "": one of its own.
        consent_required: Whether nothing is kept of who did not agree to it; else only of who objected.
    """

    def __init__(
        self,
        client: Client,
        subjects: RedisSubjects,
        audit: RedisAudit,
        *,
        full: int = 20,
        idle_seconds: int = 1800,
        holder: str = "",
        consent_required: bool = False,
    ) -> None:
        Leases.__init__(self, client, holder)
        Settling.__init__(self, client, subjects, full=max(1, full), idle_seconds=max(0, idle_seconds))
        FreshTurns.__init__(self, client, subjects, idle_seconds=max(0, idle_seconds))
        DeadLetters.__init__(self, client, subjects)
        Waiting.__init__(self, client, subjects)
        self._audit = audit
        self._required = int(consent_required)

    async def submit(
        self, subject: Subject, change: Change, audit: AuditEvent | None, *, revision: int | None
    ) -> Entry:
        """Keeps a change in one atomic, durable write: queue entry + audit event, and raises the subject's revision.

        What `remove` names leaves short-term memory and the list of fresh turns in the same write, and its heat is
        forgotten. Of episodes in `change.events` the open entry or dead letter is dropped, too, the event ends as
        rejected, `deleted`, and its session is counted one turn shorter (twice only if it is removed twice, the second
        time after its mark has expired).

        Raises:
            Stale: The subject's epoch is over, or its revision is not `revision` (None: whatever it is). Nothing was
                written.
            Forbidden: reason `consent_withdrawn`: it only adds, and the person may not be remembered. Nothing was written.
            Exists: What is made once was removed before, reason `event_id_conflict`. Nothing was written. It is known for
                at least three days.
            BackendDown: The store does not answer. Whether it wrote is not known.
        """
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        nonce = os.urandom(_NONCE)
        if len(change.put) > _MANY:
            sealed = await asyncio.to_thread(seal_change, sealer, nonce, change)
        else:
            sealed = seal_change(sealer, nonce, change)
        args: list[str | bytes | int] = [
            subject.epoch,
            subject.id,
            "" if revision is None else revision,
            nonce,
            sealed,
            DONE_LIFE,
            *(self._audit.entry(audit, subject, sealer) if audit else (b"", b"")),
            redis_marks.LIFE,
            raw_id(change.made_once) if change.made_once else b"",
            self._required if change.adds else b"",
        ]
        for memory_id in change.remove:
            event = change.events.get(memory_id)
            known = (scope.mark(event[0]), scope.session_field(event[1])) if event else (b"", scope.gone(memory_id))
            args += [raw_id(memory_id), *known]
        try:
            verdict, *entry = await self._client.script(_SUBMIT, _submit_keys(scope, nonce), args)
        finally:
            if audit:
                self._audit.wrote(subject.partition)
        if verdict == b"erased":
            self._subjects.forget(subject.id)
            raise Stale("The user's data was erased meanwhile")
        if verdict == b"withheld":
            self._subjects.heard(subject.id)  # what is cached of it may be older
            raise withdrawn()
        if verdict == b"gone":
            raise Exists("What this event_id made was deleted", reason="event_id_conflict", param="event_id")
        if verdict == b"changed":
            raise Stale("The user's memory was changed meanwhile")
        return Entry(entry_id(subject.partition, entry[0]), subject, change=change)

    async def revision(self, subject: Subject) -> int:
        """A number that every change raises: read it before what a change is based on."""
        scope = await self._subjects.scope(subject)
        return int(await self._client.run("HGET", scope.record, "rev") or 0)

    async def depth(self) -> int:
        """The number of open entries."""
        return sum((await self.backlog()).values())

    async def open_entries(self, partition: int, after: str = "") -> AsyncIterator[Entry]:
        """A partition's open entries in order; with `after`, the id of an entry, only those behind it.

        Entries of an older epoch, or of a subject that is no more, are closed, not given. One that does not open becomes
        a dead letter if this holder has the partition; else it is logged and stays.
        """
        place = Partition(partition)
        start = f"({redis_marks.stream_id(after)}" if after else "-"
        while page := await self._client.run("XRANGE", place.queue, start, "+", "COUNT", _PAGE):
            start = "(" + page[-1][0].decode()
            async for entry in self._given(place, page):
                yield entry

    async def entries(self, partition: int, ids: Sequence[str]) -> AsyncIterator[Entry]:
        """Those of a partition's entries that are still open, in the order of their ids here; others as in `open_entries`."""
        place = Partition(partition)
        wanted = [redis_marks.stream_id(name) for name in ids]
        found = await self._client.batch([("XRANGE", place.queue, name, name) for name in wanted])
        if page := [answer[0] for answer in found if answer]:
            async for entry in self._given(place, page):
                yield entry

    async def _given(self, place: Partition, page: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> AsyncIterator[Entry]:
        # The epoch is asked of the store, not of the cache: an erasure elsewhere must hold here.
        epochs = await self._epochs(place, page)
        counted = await self._client.run("HMGET", place.attempts, *(stream_id for stream_id, _ in page))
        # Before any is given: the reader may stop at any of them.
        known = [one for one in page if one[1].get(b"s") in epochs and b"e" in one[1]]
        await self._drop(place, [one for one in known if epochs[one[1][b"s"]] != one[1][b"e"]])
        for (stream_id, fields), count in zip(page, counted, strict=True):
            if (subject_id := fields.get(b"s")) not in epochs or b"e" not in fields:
                await self._unreadable(place, stream_id, None)
            elif epochs[subject_id] == fields[b"e"]:
                attempts = int.from_bytes(count[:2]) if count else 0
                entry = await self._entry(place, stream_id, fields, attempts)
                if entry is not None:
                    yield entry

    async def _entry(
        self, partition: Partition, stream_id: bytes, fields: dict[bytes, bytes], attempts: int
    ) -> Entry | None:
        subject_id = fields[b"s"].decode()
        try:
            subject = await self._subjects.by_id(subject_id)
            if subject is not None and subject.epoch != int(fields[b"e"]):
                self._subjects.forget(subject_id)
                subject = await self._subjects.by_id(subject_id)
            if subject is None or subject.epoch != int(fields[b"e"]):
                return None  # erased this moment; the next round closes it
            name = entry_id(partition.number, stream_id)
            sealer = await self._subjects.sealer(subject)
            if (nonce := fields.get(b"c")) is None:
                turn = open_turn(sealer, fields[b"i"], fields[b"t"], int(fields[b"q"]))
                return Entry(name, subject, turn, attempts=attempts)
            sealed = await self._client.run("HGET", partition.changes, nonce)
            if sealed is None:
                if not await self._client.run("XRANGE", partition.queue, stream_id, stream_id):
                    return None  # settled this moment
                raise SealBroken("a change is missing")
            change = await opened_change(sealer, nonce, sealed)
            gone = fields.get(b"g")
            if gone is not None:
                change = without_gone(change, gone)
            return Entry(name, subject, change=change, attempts=attempts, returned=gone is not None)
        except (SealBroken, KeyringError, KeyError, ValueError):
            await self._unreadable(partition, stream_id, subject_id)
        except Stale:
            log.debug("a queue entry was erased this moment")
        return None

    async def _unreadable(self, partition: Partition, stream_id: bytes, subject_id: str | None) -> None:
        name = entry_id(partition.number, stream_id)
        lease = self.held(partition.number)
        if lease is None:
            log.error("queue entry %s cannot be opened; it stays until somebody works on its partition", name)
            return
        log.error("queue entry %s cannot be opened; it becomes a dead letter", name)
        try:
            await self._fail(lease, stream_id.decode(), subject_id, "unreadable", "unreadable", give_up=True)
        except Stale:
            log.debug("queue entry %s is another process's by now", name)

    async def _epochs(
        self, partition: Partition, page: Sequence[tuple[bytes, dict[bytes, bytes]]]
    ) -> dict[bytes, bytes | None]:
        """Subject id -> epoch, None if there is no such subject; what is no subject id of the partition is left out."""
        ids = sorted({fields.get(b"s", b"") for _, fields in page})
        ids = [
            raw for raw in ids if is_subject_id(raw.decode(errors="replace")) and int(raw[:2], 16) == partition.number
        ]
        found = await self._client.batch([("HGET", partition.subject(raw.decode()), "epoch") for raw in ids])
        return dict(zip(ids, found, strict=True))

    async def _drop(self, partition: Partition, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        if not entries:
            return
        ids = [stream_id for stream_id, _ in entries]
        changes = [fields[b"c"] for _, fields in entries if b"c" in fields]
        commands = [("XDEL", partition.queue, *ids), ("HDEL", partition.attempts, *ids)]
        await self._client.batch(commands + ([("HDEL", partition.changes, *changes)] if changes else []))


def _submit_keys(scope: Scope, nonce: bytes) -> list[str]:
    partition = scope.partition
    return [
        *(scope.record, partition.queue, partition.audit, partition.changes, partition.done(nonce.hex())),
        *(scope.recent, scope.fresh, partition.due, scope.sessions, scope.active, scope.heat),
        *(partition.attempts, partition.dead, partition.dead_marks),
        *(scope.marks(day) for day in days_kept(utc_now().timestamp())),
    ]
