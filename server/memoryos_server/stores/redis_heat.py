"""How often records are used: one hash a subject, since it changes with every read."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import HeatState, Subject
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_marks import raw_id
from memoryos_server.stores.redis_subjects import RedisSubjects

_STATE = struct.Struct(">dId")

_PUT = Script(
    "put_heat",
    """
    -- KEYS subject record, heat. ARGV epoch, then per record: id, state. Of an epoch that is over, nothing is kept.
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
    for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
    return 1
    """,
)

SCRIPTS = (_PUT,)


class RedisHeat:
    """The port `HeatStore`.

    Args:
        client: The connection.
        subjects: Who is known.
    """

    def __init__(self, client: Client, subjects: RedisSubjects) -> None:
        self._client = client
        self._subjects = subjects

    async def get(self, subject: Subject, ids: Sequence[str]) -> Mapping[str, HeatState]:
        """What is known of records; those of which nothing is known are left out."""
        if not ids:
            return {}
        scope = await self._subjects.scope(subject)
        stored = await self._client.run("HMGET", scope.heat, *map(raw_id, ids))
        found = {}
        for record_id, value in zip(ids, stored, strict=True):
            if value is not None:
                heat, count, at = _STATE.unpack(value)
                found[record_id] = HeatState(heat, count, from_unix(at))
        return found

    async def put(self, subject: Subject, states: Mapping[str, HeatState]) -> None:
        """Keeps states. Those of a record that was removed meanwhile, or of an epoch that is over, do no harm."""
        if not states:
            return
        scope = await self._subjects.scope(subject)
        args: list[str | bytes | int] = [subject.epoch]
        for record_id, state in states.items():
            args += [raw_id(record_id), _STATE.pack(state.heat, state.count, state.last_accessed.timestamp())]
        await self._client.script(_PUT, [scope.record, scope.heat], args)
