"""The records of erasures, and the write that ends somebody's epoch.

That write is one script in the person's own partition: the record begins, the data key and the name are gone, and the
keyed hash of the user leads nowhere any more. Who comes back is a new subject with keys and ids of its own, so that nothing
of before can be mixed with what comes later. What is left under the old subject's id is a tombstone, by which work of the
old epoch is known. A record holds no name: whose erasure it was, only the keyed hash says, to who has the store's secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from memoryos_server.domain.ports.privacy import Erasure, Part, Whose
from memoryos_server.stores import redis_subjects
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import CHANGES, PARTITIONS, Partition, is_subject_id, partition_of

_PURPOSE = "erasure"

_BEGIN = Script(
    "begin_erasure",
    """
    -- KEYS lookup, keyring, erasures, erasing, subject record. ARGV lookup hash, subject id or '', erasure id, record, channel,
    -- kind of message. Gives 1, or 0 and changes nothing if the user is another subject by now. Sent again, it says 1 again.
    if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 1 then return 1 end
    if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
    if ARGV[2] ~= '' then
      local epoch = redis.call('HINCRBY', KEYS[5], 'epoch', 1)
      redis.call('DEL', KEYS[5])
      redis.call('HSET', KEYS[5], 'epoch', epoch, 'erased', '1')
      redis.call('HDEL', KEYS[2], ARGV[2])
      redis.call('HDEL', KEYS[1], ARGV[1])
      redis.call('PUBLISH', ARGV[5], ARGV[6] .. ' ' .. ARGV[2])
    end
    redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
    redis.call('SADD', KEYS[4], ARGV[3])
    return 1
    """,
)

_KEEP = Script(
    "keep_erasure",
    """
    -- KEYS erasures, erasing. ARGV erasure id, revision it is based on, record, '1' if it has ended. Gives 1, or 0 and changes
    -- nothing if somebody else kept it meanwhile. Sent again with the same record, it says 1 again.
    local there = redis.call('HGET', KEYS[1], ARGV[1])
    if not there then return 0 end
    if there == ARGV[3] then return 1 end
    if string.match(there, '^%d+') ~= ARGV[2] then return 0 end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    if ARGV[4] == '1' then redis.call('SREM', KEYS[2], ARGV[1]) end
    return 1
    """,
)

SCRIPTS = (_BEGIN, _KEEP)


class RedisErasures:
    """The port `Erasures`.

    Args:
        client: The connection.
        manifest: The opened store.
        subjects: Who is known.
    """

    def __init__(self, client: Client, manifest: Manifest, subjects: RedisSubjects) -> None:
        self._client = client
        self._secrets = manifest.secrets
        self._subjects = subjects

    def lookup(self, tenant_id: str, user_id: str) -> str:
        """The keyed hash of a tenant and a user."""
        return self._subjects.lookup(tenant_id, user_id)

    def fresh_id(self, tenant_id: str, user_id: str) -> str:
        """An id for an erasure of a user that is still to begin."""
        return self.lookup(tenant_id, user_id)[:2] + os.urandom(15).hex()

    async def begin(self, tenant_id: str, user_id: str, actor: str, now: datetime, *, erasure_id: str = "") -> Erasure:
        """In one atomic, durable write: the epoch ends, the data's key is destroyed, and the erasure is recorded.

        Raises:
            BackendDown: The store does not answer. Whether it was done is not known; what was is completed.
        """
        lookup = self.lookup(tenant_id, user_id)
        partition = partition_of(lookup)
        erasure_id = erasure_id or self.fresh_id(tenant_id, user_id)
        while True:
            raw = await self._client.run("HGET", partition.lookup, lookup)
            subject_id = raw.decode() if raw else ""
            erasure = Erasure(erasure_id, Whose(tenant_id, lookup, subject_id, now), actor, now)
            keys = [partition.lookup, partition.keyring, partition.erasures, partition.erasing]
            # Without a subject nothing is done to a record; the key only has to lie in the same slot.
            keys.append(partition.subject(subject_id) if subject_id else partition.lookup)
            args: list[str | bytes | int] = [lookup, subject_id, erasure_id, self._sealed(erasure)]
            if await self._client.script(_BEGIN, keys, [*args, CHANGES, redis_subjects.KIND]):
                if subject_id:
                    self._subjects.forget(subject_id)
                return erasure

    async def find(self, erasure_id: str) -> Erasure | None:
        """The record of an id, or None."""
        if not is_subject_id(erasure_id):  # they are made alike
            return None
        raw = await self._client.run("HGET", partition_of(erasure_id).erasures, erasure_id)
        return None if raw is None else self._opened(erasure_id, raw)

    async def pending(self, lookup: str = "") -> list[Erasure]:
        """Those that have not come to their end: all, or those of one user, by the keyed hash."""
        # An id begins as the keyed hash does: both lie in one partition.
        partitions = [partition_of(lookup)] if lookup else [Partition(number) for number in range(PARTITIONS)]
        found = await self._client.batch([("SMEMBERS", partition.erasing) for partition in partitions])
        wanted = [(p, raw.decode()) for p, ids in zip(partitions, found, strict=True) for raw in sorted(ids)]
        records = await self._client.batch([("HGET", partition.erasures, name) for partition, name in wanted])
        opened = [self._opened(name, raw) for (_, name), raw in zip(wanted, records, strict=True) if raw is not None]
        return [one for one in opened if lookup in ("", one.whose.lookup)]

    async def keep(self, erasure: Erasure, *, ended: bool = False) -> Erasure | None:
        """Keeps what became of an erasure, and gives it as it is kept; None, and nothing is kept, if somebody else did."""
        made = replace(erasure, revision=erasure.revision + 1)
        partition = partition_of(erasure.id)
        args: list[str | bytes | int] = [erasure.id, erasure.revision, self._sealed(made), "1" if ended else ""]
        kept = await self._client.script(_KEEP, [partition.erasures, partition.erasing], args)
        return made if kept else None

    def _sealed(self, erasure: Erasure) -> bytes:
        whose = erasure.whose
        record = {
            "tenant": whose.tenant_id,
            "lookup": whose.lookup,
            "subject": whose.subject_id,
            "before": whose.before.isoformat(),
            "actor": erasure.actor,
            "requested": erasure.requested_at.isoformat(),
            "state": erasure.state,
            "parts": {name: [part.removed, part.left, part.error] for name, part in erasure.parts.items()},
            "attempts": erasure.attempts,
            "verified": _text(erasure.verified_at),
            "settled": erasure.settled,
            "files": dict(erasure.files),
            "compacted": _text(erasure.compacted_at),
            "told": erasure.told,
        }
        # The revision stands in clear before the rest: scripts compare it.
        return b"%d " % erasure.revision + self._secrets.seal(_PURPOSE, erasure.id, orjson.dumps(record))

    def _opened(self, erasure_id: str, raw: bytes) -> Erasure:
        revision, _, sealed = raw.partition(b" ")
        record: Mapping[str, Any] = orjson.loads(self._secrets.open(_PURPOSE, erasure_id, sealed))
        before = datetime.fromisoformat(record["before"])
        return Erasure(
            id=erasure_id,
            whose=Whose(record["tenant"], record["lookup"], record["subject"], before),
            actor=record["actor"],
            requested_at=datetime.fromisoformat(record["requested"]),
            state=record["state"],
            parts={name: Part(*part) for name, part in record["parts"].items()},
            attempts=record["attempts"],
            verified_at=_time(record["verified"]),
            settled=record["settled"],
            files=record["files"],
            compacted_at=_time(record["compacted"]),
            told=record.get("told", False),  # not in records of before there was this
            revision=int(revision),
        )


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
