"""Work that was given up: one stream of dead letters a partition, until somebody looks at them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.core.ids import kept_ids
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.ports import Change, DeadLetter, Subject, Turn
from memoryos_server.stores import redis_marks, redis_settling
from memoryos_server.stores.change_form import opened_change, without_gone
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_marks import day_of, raw_id
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.redis_turns import open_turn
from memoryos_server.stores.scope import PARTITIONS, Partition, Scope, is_subject_id
from memoryos_server.stores.sealing import SealBroken

log = logging.getLogger(__name__)

_PAGE = 16
_DONE = 2
_NONCE = 8

DONE_LIFE = 60
"""Seconds for which a call that is sent again after its answer was lost is known."""

_TAKE = Script(
    "take_dead_letter",
    redis_marks.LUA
    + redis_settling.LUA
    + """
    -- KEYS dead, queue, changes, dead marks, done; then, if the subject is known: record, marks of today, of the day on
    --      which the entry came into the queue, the one before, the one after; then, of a change that goes back, all marks
    --      there may be, newest first.
    -- ARGV stream id, '1' to put it back into the queue, life of `done` (s), life of marks (s), '1' if nothing is left of
    --      a change without the records it would keep, then per such record: id, its field among the dead marks, and both
    --      of its alias, under which it may have been kept.
    -- Gives 1 if it was there, 2 if nothing was left of it: all that it would keep was removed since it came.
    local done = redis.call('GET', KEYS[5])
    if done then return tonumber(done) end
    local id = ARGV[1]
    local found = redis.call('XRANGE', KEYS[1], id, id)[1]
    if not found then return 0 end
    local fields, entry = found[2], {}
    local mark, change = field_of(fields, 'm'), field_of(fields, 'c')
    redis.call('XDEL', KEYS[1], id)
    if mark ~= '' then redis.call('HDEL', KEYS[4], mark) end
    -- `g` holds the ids of those that were removed before it was given back another time.
    local came, gone, left = field_of(fields, 'o'), field_of(fields, 'g'), 0
    for i = 6, #ARGV, 4 do
      local over = false
      for k = i, i + 2, 2 do
        local removed = redis.call('HGET', KEYS[4], ARGV[k + 1]) or find_mark(ARGV[k], 11, #KEYS)
        over = over or (removed and came_after(removed, came))
      end
      if over then
        gone = gone .. ARGV[i]
      else
        left = left + 1
      end
    end
    if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[4]) end
    if KEYS[6] and redis.call('HGET', KEYS[6], 'epoch') ~= field_of(fields, 'e') then
      redis.call('HDEL', KEYS[3], change)
      return 0
    end
    if ARGV[2] == '1' and ARGV[5] == '1' and left == 0 then
      redis.call('SET', KEYS[5], '2', 'EX', ARGV[3])
      redis.call('HDEL', KEYS[3], change)
      return 2
    end
    redis.call('SET', KEYS[5], '1', 'EX', ARGV[3])
    local letter, reason, place_now = 'r', 'discarded', id
    if ARGV[2] == '1' then
      for i = 1, #fields, 2 do
        if not string.find('onkrg', fields[i], 1, true) then
          entry[#entry + 1] = fields[i]
          entry[#entry + 1] = fields[i + 1]
        end
      end
      if change ~= '' then
        entry[#entry + 1] = 'g'
        entry[#entry + 1] = gone
      end
      letter, reason, place_now = 'a', '', redis.call('XADD', KEYS[2], '*', unpack(entry))
    else
      redis.call('HDEL', KEYS[3], change)
    end
    if not KEYS[6] or mark == '' then return 1 end
    local known, key = find_mark(mark, 7, 10)
    if known and entry_of(known) == id then
      -- A mark lies with those of its entry's day, where whoever ends the entry looks for it.
      redis.call('HDEL', key, mark)
      set_state(KEYS[7], mark, known, letter, place_now, tonumber(field_of(fields, 'n')), reason, '')
      redis.call('EXPIRE', KEYS[7], ARGV[4])
    end
    return 1
    """,
)

SCRIPTS = (_TAKE,)


@dataclass(slots=True)
class _Reading:
    """How far the dead letters of one partition were read."""

    partition: Partition
    page: list[tuple[bytes, dict[bytes, bytes]]] = field(default_factory=list)

    @property
    def next_at(self) -> tuple[int, int, int]:
        millis, number = self.page[0][0].split(b"-")
        return int(millis), self.partition.number, int(number)


class DeadLetters:
    """The part of the port `Queue` that keeps what was given up.

    Args:
        client: The connection.
        subjects: Who is known.
    """

    def __init__(self, client: Client, subjects: RedisSubjects) -> None:
        self._client = client
        self._subjects = subjects

    async def dead_letters(self, tenant_id: str | None) -> AsyncIterator[DeadLetter]:
        """Every dead letter of a tenant (None: of all), oldest first. Those of an erased person are dropped, not given."""
        lengths = await self._lengths_of_dead()
        readings = [_Reading(Partition(number)) for number, length in enumerate(lengths) if length]
        for reading in readings:
            await self._read_on(reading, "-")
        while readings := [reading for reading in readings if reading.page]:
            reading = min(readings, key=lambda one: one.next_at)
            stream_id, fields = reading.page.pop(0)
            if not reading.page:
                await self._read_on(reading, f"({stream_id.decode()}")
            subject, over = await self._whose(fields)
            if over:
                await self._take(reading.partition, stream_id.decode(), fields, requeue=False)
            elif tenant_id is None or (subject is not None and subject.tenant_id == tenant_id):
                yield await self._letter(reading.partition, stream_id.decode(), fields, subject)

    async def dead(self) -> int:
        """The number of dead letters of all tenants."""
        return sum(await self._lengths_of_dead())

    async def requeue(self, dead_letter_id: str, tenant_id: str | None) -> bool:
        """Makes a dead letter an open entry again, with no attempts counted; False if there is no such one in the tenant.

        It comes behind everything that is open by now. One of an erased person, or of a deleted turn, is no more. Of a
        change, what was removed since it was accepted is not kept again; if nothing else is left of it, it is done.
        """
        return await self._find_and_take(dead_letter_id, tenant_id, requeue=True)

    async def discard(self, dead_letter_id: str, tenant_id: str | None) -> bool:
        """Drops a dead letter for good; its event ends as rejected, `discarded`. False if there is no such one in the tenant."""
        return await self._find_and_take(dead_letter_id, tenant_id, requeue=False)

    async def _find_and_take(self, dead_letter_id: str, tenant_id: str | None, *, requeue: bool) -> bool:
        number, _, stream_id = dead_letter_id.partition("-")
        if not _is_number(number, PARTITIONS) or not all(_is_number(part) for part in stream_id.split("-", 1)):
            return False
        partition = Partition(int(number))
        page = await self._client.run("XRANGE", partition.dead, stream_id, stream_id)
        if not page or f"{partition.number}-{page[0][0].decode()}" != dead_letter_id:
            return False  # it may be written in another way: only one is its name
        fields = page[0][1]
        subject, over = await self._whose(fields)
        if tenant_id is not None and (subject is None or subject.tenant_id != tenant_id) and not over:
            return False
        change = await self._change(partition, fields, subject) if requeue and subject is not None else None
        taken = await self._take(partition, stream_id, fields, requeue=requeue, change=change)
        if taken == _DONE:
            log.info("dead letter %s was not given back: all that it would keep was deleted since", dead_letter_id)
        return bool(taken)

    async def _take(
        self,
        partition: Partition,
        stream_id: str,
        fields: Mapping[bytes, bytes],
        *,
        requeue: bool,
        change: tuple[Change, Scope] | None = None,
    ) -> int:
        done = partition.done(os.urandom(_NONCE).hex())
        keys = [partition.dead, partition.queue, partition.changes, partition.dead_marks, done]
        if (subject_id := _subject_id(fields, partition)) is not None:
            today, came = day_of(stream_id), day_of(fields[b"o"].decode())
            if requeue:
                time = await self._client.run("TIME")
                today = int(time[0]) // redis_marks.DAY
            days = (today, came, came - 1, came + 1)
            keys += [partition.subject(subject_id), *(partition.marks(subject_id, day) for day in days)]
        args: list[str | bytes | int] = [stream_id, "1" if requeue else "", DONE_LIFE, redis_marks.LIFE]
        if change is not None:
            what, scope = change
            keys += [scope.marks(day) for day in redis_marks.days_kept(utc_now().timestamp())]
            args.append("1" if what.put and not what.remove else "")
            for record in what.put:
                for name in (record.id, kept_ids(scope.subject.id, record.id)[-1]):
                    args += (raw_id(name), scope.gone(name))
        return int(await self._client.script(_TAKE, keys, args))

    async def _change(
        self, partition: Partition, fields: Mapping[bytes, bytes], subject: Subject
    ) -> tuple[Change, Scope] | None:
        """The change of a dead letter, as far as it is still to be done; None if it is none, or does not open."""
        if (nonce := fields.get(b"c")) is None:
            return None
        sealed = await self._client.run("HGET", partition.changes, nonce)
        if sealed is None:
            return None
        try:
            sealer = await self._subjects.sealer(subject)
            change = await opened_change(sealer, nonce, sealed)
        except (SealBroken, Stale):
            return None
        return without_gone(change, fields.get(b"g", b"")), Scope(subject, sealer)

    async def _lengths_of_dead(self) -> list[int]:
        return await self._client.lengths([Partition(number).dead for number in range(PARTITIONS)])

    async def _read_on(self, reading: _Reading, after: str) -> None:
        reading.page = await self._client.run("XRANGE", reading.partition.dead, after, "+", "COUNT", _PAGE)

    async def _whose(self, fields: Mapping[bytes, bytes]) -> tuple[Subject | None, bool]:
        """Whose a dead letter is, and whether it belongs to an epoch that is over."""
        subject_id = fields.get(b"s", b"").decode(errors="replace")
        if not is_subject_id(subject_id):
            return None, False
        partition = Partition(int(subject_id[:2], 16))
        epoch = await self._client.run("HGET", partition.subject(subject_id), "epoch")
        if epoch is not None and epoch != fields.get(b"e", epoch):
            return None, True
        try:
            return await self._subjects.by_id(subject_id), False
        except (SealBroken, KeyringError) as error:
            log.error("the person of a dead letter cannot be known: %s", error)
            return None, False

    async def _letter(
        self, partition: Partition, stream_id: str, fields: Mapping[bytes, bytes], subject: Subject | None
    ) -> DeadLetter:
        turn = await self._turn(fields, subject)
        return DeadLetter(
            id=f"{partition.number}-{stream_id}",
            subject=subject,
            event_id=turn.event_id if turn else "",
            kind=fields[b"k"].decode(),
            reason=fields[b"r"].decode(errors="replace"),
            attempts=int(fields[b"n"]),
            failed_at=from_unix(int(stream_id.partition("-")[0]) / 1000),
            content=turn.content if turn else "",
        )

    async def _turn(self, fields: Mapping[bytes, bytes], subject: Subject | None) -> Turn | None:
        if subject is None or not fields.keys() >= {b"i", b"t", b"q"}:
            return None
        try:
            sealer = await self._subjects.sealer(subject)
            return open_turn(sealer, fields[b"i"], fields[b"t"], int(fields[b"q"]))
        except (SealBroken, Stale, ValueError):
            return None


def _subject_id(fields: Mapping[bytes, bytes], partition: Partition) -> str | None:
    """The subject id of an entry, None if it names no subject of its partition and no epoch."""
    if b"e" not in fields:
        return None
    subject_id = fields.get(b"s", b"").decode(errors="replace")
    return subject_id if is_subject_id(subject_id) and int(subject_id[:2], 16) == partition.number else None


def _is_number(text: str, below: int | None = None) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and (below is None or int(text) < below)
