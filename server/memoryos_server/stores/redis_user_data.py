"""The categories of a person's data that lie on the Redis side.

What a subject's own keys hold is erased with them; of what the partition's keys hold, the entries that name the subject.
The subject's data key is destroyed by then: nothing here opens anything to erase it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.privacy import Whose
from memoryos_server.domain.privacy.items import moment, of_record, of_turn
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_consents import RedisConsents
from memoryos_server.stores.redis_heat import RedisHeat
from memoryos_server.stores.redis_marks import DAY, text_id
from memoryos_server.stores.redis_queue import RedisQueue
from memoryos_server.stores.redis_receipts import RedisReceipts
from memoryos_server.stores.redis_turns import RedisTurns
from memoryos_server.stores.scope import SubjectKeys, partition_of

_PAGE = 256
_RECENT = 10_000
_SESSIONS_AT_ONCE = 100

_TIDY = Script(
    "tidy_dead_marks",
    "if redis.call('XLEN', KEYS[1]) == 0 then return redis.call('DEL', KEYS[2]) end return 0  -- KEYS dead, dead marks.",
)

SCRIPTS = (_TIDY,)


class OwnKeys:
    """A category that has keys of its own."""

    name: str

    def __init__(self, client: Client) -> None:
        self._client = client

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """The keys it lies under."""
        raise NotImplementedError

    async def erase(self, whose: Whose) -> int:
        """As `UserData.erase`; gives the number of keys."""
        if not whose.subject_id:
            return 0
        return sum(await self._client.batch([("DEL", key) for key in self.keys(SubjectKeys(whose.subject_id))]))

    async def left(self, whose: Whose) -> int:
        """As `UserData.left`, in keys."""
        if not whose.subject_id:
            return 0
        return sum(await self._client.batch([("EXISTS", key) for key in self.keys(SubjectKeys(whose.subject_id))]))


class Recent(OwnKeys):
    """Short-term memory."""

    name = "recent"

    def __init__(self, client: Client, turns: RedisTurns) -> None:
        super().__init__(client)
        self._turns = turns

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """The newest turns."""
        return [of.recent]

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """The newest turns, oldest first."""
        for turn in await self._turns.recent(subject, _RECENT) if subject else ():
            yield of_turn(turn)


class Sessions(OwnKeys):
    """The list of conversations."""

    name = "sessions"

    def __init__(self, client: Client, turns: RedisTurns) -> None:
        super().__init__(client)
        self._turns = turns

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """What is known of each, and their order."""
        return [of.sessions, of.active]

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Conversations, last active first."""
        after, more = "", subject is not None
        while more and subject is not None:
            found, after = await self._turns.sessions(subject, after, _SESSIONS_AT_ONCE)
            for one in found:
                times = {"first_at": moment(one.first_at), "last_at": moment(one.last_at)}
                yield {"id": one.id, "turns": one.turns, **times}
            more = bool(after)


class Receipts(OwnKeys):
    """Which memories went into chats."""

    name = "receipts"

    def __init__(self, client: Client, receipts: RedisReceipts) -> None:
        super().__init__(client)
        self._receipts = receipts

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """Those of all days."""
        return of.all_receipts(int(time.time() // DAY))

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Receipts."""
        if subject is not None:
            async for receipt in self._receipts.all(subject):
                yield asdict(receipt)


class Heat(OwnKeys):
    """How often memories were used."""

    name = "heat"

    def __init__(self, client: Client, heat: RedisHeat) -> None:
        super().__init__(client)
        self._heat = heat

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """The heat of all records."""
        return [of.heat]

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Memory id, heat, count and time of the last use."""
        cursor: Any = 0
        while subject is not None:
            cursor, found = await self._client.run("HSCAN", SubjectKeys(subject.id).heat, cursor, "COUNT", _PAGE)
            for name, state in (await self._heat.get(subject, [text_id(raw) for raw in found])).items():
                yield {
                    "id": name,
                    "heat": state.heat,
                    "count": state.count,
                    "last_accessed": moment(state.last_accessed),
                }
            if not int(cursor):
                return


class Consents(OwnKeys):
    """What a person agreed to. It goes with the rest: who comes back has decided nothing."""

    name = "consents"

    def __init__(self, client: Client, consents: RedisConsents) -> None:
        super().__init__(client)
        self._consents = consents

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """Every decision."""
        return [of.consents]

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Decisions, in the order in which they were kept."""
        for one in await self._consents.history(subject) if subject else ():
            yield {
                "id": one.id,
                "purpose": one.purpose,
                "granted": one.granted,
                "recorded_at": moment(one.recorded_at),
                "recorded_by": one.actor,
            }


class Work(OwnKeys):
    """Work that is open or was given up, and what the ledger remembers of events."""

    name = "queue"

    def __init__(self, client: Client, queue: RedisQueue) -> None:
        super().__init__(client)
        self._queue = queue

    def keys(self, of: SubjectKeys) -> Sequence[str]:
        """Fresh turns and marks; the streams are the partition's."""
        return [of.fresh, *of.all_marks(int(time.time() // DAY))]

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Open work, then what was given up: turns with their text, changes with the records they would keep."""
        if subject is None:
            return
        async for entry in self._queue.open_entries(subject.partition):
            if entry.subject.id == subject.id:
                yield {
                    "id": entry.id,
                    "state": "open",
                    "turn": of_turn(entry.turn) if entry.turn else None,
                    "records": [of_record(record) for record in entry.change.put] if entry.change else [],
                }
        async for letter in self._queue.dead_letters(subject.tenant_id):
            if letter.subject is not None and letter.subject.id == subject.id:
                yield {
                    "id": letter.id,
                    "state": "dead_letter",
                    "event_id": letter.event_id,
                    "content": letter.content,
                    "reason": letter.reason,
                    "failed_at": moment(letter.failed_at),
                }

    async def erase(self, whose: Whose) -> int:
        """As `UserData.erase`; gives the number of entries and keys."""
        if not whose.subject_id:
            return 0
        partition, removed = partition_of(whose.subject_id), 0
        for stream in (partition.queue, partition.dead):
            async for entries in self._mine(stream, whose.subject_id):
                ids = [stream_id for stream_id, _ in entries]
                commands: list[tuple[Any, ...]] = [("XDEL", stream, *ids)]
                changes = [fields[b"c"] for _, fields in entries if b"c" in fields]
                marks = [fields[b"m"] for _, fields in entries if b"m" in fields]
                if stream == partition.queue:
                    commands.append(("HDEL", partition.attempts, *ids))
                elif marks:
                    commands.append(("HDEL", partition.dead_marks, *marks))
                if changes:
                    commands.append(("HDEL", partition.changes, *changes))
                await self._client.batch(commands)
                removed += len(ids)
        await self._client.script(_TIDY, [partition.dead, partition.dead_marks], [])
        await self._client.run("ZREM", partition.due, whose.subject_id)
        return removed + await super().erase(whose)

    async def left(self, whose: Whose) -> int:
        """As `UserData.left`, in entries and keys."""
        if not whose.subject_id:
            return 0
        partition, count = partition_of(whose.subject_id), 0
        for stream in (partition.queue, partition.dead):
            async for entries in self._mine(stream, whose.subject_id):
                count += len(entries)
        due = await self._client.run("ZSCORE", partition.due, whose.subject_id)
        return count + (due is not None) + await super().left(whose)

    async def _mine(self, stream: str, subject_id: str) -> AsyncIterator[list[tuple[bytes, Mapping[bytes, bytes]]]]:
        start = "-"
        while page := await self._client.run("XRANGE", stream, start, "+", "COUNT", _PAGE):
            if mine := [one for one in page if one[1].get(b"s") == subject_id.encode()]:
                yield mine
            start = "(" + page[-1][0].decode()
