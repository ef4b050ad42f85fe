"""How accepted work ends: each entry once, by whoever holds the partition."""

from __future__ import annotations

import os
from collections.abc import Sequence

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Change, Entry, Lease, Settlement, Subject
from memoryos_server.stores import redis_marks
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_leases import lease_lost
from memoryos_server.stores.redis_marks import day_of, days_kept, letter, raw_id, stream_id
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import Partition

_NONCE = 8

LUA = """
    local function field_of(fields, name)
      for i = 1, #fields, 2 do if fields[i] == name then return fields[i + 1] end end
      return ''
    end
"""
"""What scripts that read entries begin with."""

_SETTLE = Script(
    "settle",
    redis_marks.LUA
    + LUA
    + """
    -- KEYS lease, queue, attempts, changes, due; then per subject and day: record, fresh, marks of the day, the one
    --      before, the one after.
    -- ARGV token, turns that make short-term memory full, seconds until a conversation is idle, then per entry: stream id,
    --      subject id, epoch, first of its keys, mark or '' (a change), letter, reason, related, memory id or '' (not fresh).
    -- An entry that is gone was settled before, or its turn was deleted: nothing more is to be written about it.
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
    local heard, order = {}, {}
    for i = 4, #ARGV, 9 do
      local id, first, mark = ARGV[i], tonumber(ARGV[i + 3]), ARGV[i + 4]
      if mark == '' then
        local found = redis.call('XRANGE', KEYS[2], id, id)[1]
        if found then redis.call('HDEL', KEYS[4], field_of(found[2], 'c')) end
      end
      if redis.call('XDEL', KEYS[2], id) == 1 then
        local counted, attempts = redis.call('HGET', KEYS[3], id), 0
        if counted then
          attempts = struct.unpack('>I2', counted)
          redis.call('HDEL', KEYS[3], id)
        end
        if mark ~= '' and redis.call('HGET', KEYS[first], 'epoch') == ARGV[i + 2] then
          local known, key = find_mark(mark, first + 2, first + 4)
          local mine = known and entry_of(known) == id and letter_of(known) == 'a'
          if mine then set_state(key, mark, known, ARGV[i + 5], id, attempts, ARGV[i + 6], ARGV[i + 7]) end
          if (mine or not known) and ARGV[i + 8] ~= '' then redis.call('RPUSH', KEYS[first + 1], ARGV[i + 8]) end
          local fresh = KEYS[first + 1]
          if not heard[fresh] then
            heard[fresh] = {ARGV[i + 1], 0}
            order[#order + 1] = fresh
          end
          heard[fresh][2] = math.max(heard[fresh][2], tonumber(string.match(id, '%d+')) / 1000)
        end
      end
    end
    if redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[3]) end
    for _, fresh in ipairs(order) do
      local turns, subject, last = redis.call('LLEN', fresh), heard[fresh][1], heard[fresh][2]
      if turns >= tonumber(ARGV[2]) then
        redis.call('ZADD', KEYS[5], last, subject)
      elseif turns > 0 then
        redis.call('ZADD', KEYS[5], last + tonumber(ARGV[3]), subject)
      end
    end
    return 1
    """,
)

_FAILED = Script(
    "failed",
    redis_marks.LUA
    + LUA
    + """
    -- KEYS lease, queue, attempts, changes, dead, dead marks; then, if the subject is known: record, marks of the entry's
    --      day, the one before, the one after; then, of a change that is given up, all marks there may be, newest first.
    -- ARGV token, nonce, stream id, '1' to give up, kind, reason, then per record that the change would keep: id, its
    --      field among the dead marks. Gives the number of attempts, -1 if the lease is over.
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return -1 end
    local id = ARGV[3]
    local found = redis.call('XRANGE', KEYS[2], id, id)[1]
    if not found then
      local newest = redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)[1]
      if newest and field_of(newest[2], 'o') == id then return tonumber(field_of(newest[2], 'n')) end
      return 0
    end
    local counted = redis.call('HGET', KEYS[3], id)
    local attempts = 0
    if counted then attempts = struct.unpack('>I2', counted) end
    if counted and string.sub(counted, 3) == ARGV[2] then return attempts end
    attempts = math.min(attempts + 1, 65535)
    if ARGV[4] ~= '1' then
      redis.call('HSET', KEYS[3], id, struct.pack('>I2', attempts) .. ARGV[2])
      return attempts
    end
    local fields = found[2]
    local mark, change = field_of(fields, 'm'), field_of(fields, 'c')
    redis.call('XDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    if KEYS[7] and redis.call('HGET', KEYS[7], 'epoch') ~= field_of(fields, 'e') then
      redis.call('HDEL', KEYS[4], change)
      return attempts
    end
    for _, value in ipairs({'o', id, 'n', attempts, 'k', ARGV[5], 'r', ARGV[6]}) do fields[#fields + 1] = value end
    local dead = redis.call('XADD', KEYS[5], '*', unpack(fields))
    -- What was removed while this was open must be known for as long as this may come back.
    for i = 7, #ARGV, 2 do
      local removed = find_mark(ARGV[i], 11, #KEYS)
      if removed and came_after(removed, id) then redis.call('HSET', KEYS[6], ARGV[i + 1], removed) end
    end
    if KEYS[7] and mark ~= '' then
      redis.call('HSET', KEYS[6], mark, dead)
      local known, key = find_mark(mark, 8, 10)
      if known and entry_of(known) == id and letter_of(known) == 'a' then
        set_state(key, mark, known, 'd', dead, attempts, string.sub(ARGV[6], 1, 64), '')
      end
    end
    return attempts
    """,
)

_STARTED = Script(
    "started",
    """
    -- KEYS lease, attempts. ARGV token, nonce, then stream ids.
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
    for i = 3, #ARGV do
      local counted = redis.call('HGET', KEYS[2], ARGV[i])
      local attempts = 0
      if counted then attempts = struct.unpack('>I2', counted) end
      if not counted or string.sub(counted, 3) ~= ARGV[2] then
        redis.call('HSET', KEYS[2], ARGV[i], struct.pack('>I2', math.min(attempts + 1, 65535)) .. ARGV[2])
      end
    end
    return 1
    """,
)

SCRIPTS = (_SETTLE, _FAILED, _STARTED)


class Settling:
    """The part of the port `Queue` that ends entries.

    Args:
        client: The connection.
        subjects: Who is known.
        full: How many fresh turns are due at once.
        idle_seconds: How long after the last turn fewer of them are due.
    """

    def __init__(self, client: Client, subjects: RedisSubjects, *, full: int, idle_seconds: int) -> None:
        self._client = client
        self._subjects = subjects
        self._full = full
        self._idle = idle_seconds

    async def settle(self, lease: Lease, settlements: Sequence[Settlement]) -> None:
        """Ends entries whose work is durable: each once, however often this is called. One atomic write.

        The event's state is written, and the turn joins the fresh ones, only if this call took the entry away. A
        subject's fresh turns are due at once when there are many, else when its conversation has been idle.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
            ValueError: An entry lies in another partition.
        """
        if not settlements:
            return
        partition = Partition(lease.partition)
        keys = [partition.lease, partition.queue, partition.attempts, partition.changes, partition.due]
        first: dict[tuple[str, int], int] = {}
        args: list[str | bytes | int] = [lease.token, self._full, self._idle]
        for settlement in settlements:
            entry, subject = settlement.entry, settlement.entry.subject
            if subject.partition != lease.partition:
                raise ValueError("an entry of another partition")
            entry_stream_id = stream_id(entry.id)
            day = day_of(entry_stream_id)
            if (at := first.get((subject.id, day))) is None:
                at = first[subject.id, day] = len(keys) + 1
                keys += self._subject_keys(subject, day)
            fresh = entry.turn is not None and settlement.fresh
            args += [
                entry_stream_id,
                subject.id,
                subject.epoch,
                at,
                await self._mark(entry),
                letter(settlement.state) if entry.turn is not None else "",
                settlement.reason[:64],
                raw_id(settlement.related) if settlement.related else b"",
                raw_id(entry.turn.id) if fresh and entry.turn is not None else b"",
            ]
        if not await self._client.script(_SETTLE, keys, args):
            raise lease_lost()

    async def failed(self, lease: Lease, entry: Entry, reason: str, *, give_up: bool) -> int:
        """Counts a failed attempt, or makes the entry a dead letter; gives the number of attempts.

        An entry that is gone gives 0, or the attempts with which it became the newest dead letter.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
        """
        kind = "turn" if entry.turn is not None else "change"
        change = entry.change if give_up else None
        keeps = await self._keeps(entry.subject, change) if change is not None else []
        return await self._fail(
            lease, stream_id(entry.id), entry.subject.id, kind, reason, give_up=give_up, keeps=keeps
        )

    async def started(self, lease: Lease, entries: Sequence[Entry]) -> None:
        """Counts an attempt for entries that were open at start-up.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
        """
        if not entries:
            return
        partition = Partition(lease.partition)
        args: list[str | bytes | int] = [lease.token, os.urandom(_NONCE), *(stream_id(entry.id) for entry in entries)]
        if not await self._client.script(_STARTED, [partition.lease, partition.attempts], args):
            raise lease_lost()

    async def _fail(
        self,
        lease: Lease,
        entry_stream_id: str,
        subject_id: str | None,
        kind: str,
        reason: str,
        *,
        give_up: bool,
        keeps: Sequence[bytes] = (),
    ) -> int:
        partition = Partition(lease.partition)
        keys = [partition.lease, partition.queue, partition.attempts, partition.changes]
        keys += [partition.dead, partition.dead_marks]
        if subject_id is not None:
            day = day_of(entry_stream_id)
            keys += [partition.subject(subject_id), *(partition.marks(subject_id, day + by) for by in (0, -1, 1))]
            if keeps:
                keys += [partition.marks(subject_id, day) for day in days_kept(utc_now().timestamp())]
        args: list[str | bytes | int] = [lease.token, os.urandom(_NONCE), entry_stream_id, "1" if give_up else ""]
        args += [kind, reason, *keeps]
        attempts = int(await self._client.script(_FAILED, keys, args))
        if attempts < 0:
            raise lease_lost()
        return attempts

    async def _keeps(self, subject: Subject, change: Change) -> list[bytes]:
        """Of each record that a change would keep its id, and by what its removal is known among the dead marks."""
        try:
            scope = await self._subjects.scope(subject)
        except Stale:
            return []  # erased meanwhile: the entry goes, and leaves nothing
        return [part for record in change.put for part in (raw_id(record.id), scope.gone(record.id))]

    async def _mark(self, entry: Entry) -> bytes:
        if entry.turn is None:
            return b""
        for _ in range(2):
            try:
                return (await self._subjects.scope(entry.subject)).mark(entry.turn.event_id)
            except Stale:
                self._subjects.forget(entry.subject.id)  # what is cached may be older than the entry
        return b""  # erased meanwhile: the entry goes, and leaves nothing

    def _subject_keys(self, subject: Subject, day: int) -> list[str]:
        # Made without the subject's key, which may be destroyed by now.
        partition = Partition(subject.partition)
        marks = [partition.marks(subject.id, day + by) for by in (0, -1, 1)]
        return [partition.subject(subject.id), partition.fresh(subject.id), *marks]
