"""The chains on the Redis side: one stream a tenant, in the partition that follows from the tenant, and its head.

Nothing but `add` makes a chain longer, and it does so only if the head is the one that its links were made for. That is the
fence: whoever was stopped for a while, or had a chain that somebody else went on with, adds nothing. The head also says how far
each outbox was taken, so that what is taken twice is chained once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.chain import Link, Taken, beginning
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import PARTITIONS, Partition, partition_of

_msgpack: Any = msgpack  # ships no types

PAGE = 512
"""How many links are read or added at once."""

_TRIES = 50

_BATCH_LIFE = 86_400
"""For so many seconds it is known which batch of a writer was the last."""

_ADD = Script(
    "add_links",
    """
    -- KEYS chain, head, chains of the partition, batch. ARGV count and hash that the head must have, hash and seal that it
    -- gets, tenant's hash, tenant, name of the batch and life of that name (s), number that it must have archived, the
    -- links in MessagePack (one array: for each in turn source, event, who, hash), then per place: partition, entry.
    local head = redis.call('HMGET', KEYS[2], 'count', 'hash', 'archived')
    if head[2] == ARGV[3] then return 'added' end  -- sent again
    if ARGV[7] ~= '' and redis.call('GET', KEYS[4]) == ARGV[7] then return 'had' end
    if (head[1] or '0') ~= ARGV[1] or (head[2] and head[2] ~= ARGV[2]) then return 'moved' end
    if (head[3] or '0') ~= ARGV[9] then return 'moved' end  -- its seal would not hold
    local count = tonumber(ARGV[1])
    local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
    if last[1] and tonumber(string.match(last[1][1], '^%d+')) > count then return 'blocked' end
    redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])  -- before all others: if it is no list, nothing is written
    local links = cmsgpack.unpack(ARGV[10])
    for i = 1, #links, 4 do
      count = count + 1
      redis.call('XADD', KEYS[1], string.format('%.0f-0', count), 's', links[i], 'e', links[i + 1], 'w', links[i + 2],
                 'h', links[i + 3])
    end
    redis.call('HSET', KEYS[2], 'count', string.format('%.0f', count), 'hash', ARGV[3], 'seal', ARGV[4])
    for i = 11, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
    if ARGV[7] ~= '' then redis.call('SET', KEYS[4], ARGV[7], 'EX', ARGV[8]) end
    return 'added'
    """,
)

_ARCHIVED = Script(
    "links_archived",
    """
    -- KEYS chain, head. ARGV the number of the last link that is in the archive; count, hash and number of archived ones
    -- that the head must have, the number that it gets, and its seal with it.
    local head = redis.call('HMGET', KEYS[2], 'count', 'hash', 'archived', 'seal')
    if head[4] ~= ARGV[6] then
      if (head[1] or '0') ~= ARGV[2] or (head[2] and head[2] ~= ARGV[3]) or (head[3] or '0') ~= ARGV[4] then return 0 end
      redis.call('HSET', KEYS[2], 'archived', ARGV[5], 'seal', ARGV[6])
    end
    local found = redis.call('XRANGE', KEYS[1], '-', ARGV[1] .. '-0', 'COUNT', 1000)
    while #found > 0 do
      for i = 1, #found do redis.call('XDEL', KEYS[1], found[i][1]) end
      found = redis.call('XRANGE', KEYS[1], '-', ARGV[1] .. '-0', 'COUNT', 1000)
    end
    return 1
    """,
)

SCRIPTS = (_ADD, _ARCHIVED)


@dataclass(frozen=True, slots=True)
class Head:
    """What a chain has come to.

    Attributes:
        tenant_id: Whose.
        count: How many links it has, archived ones included.
        hash: What they add up to.
        archived: How many of them, the oldest, are in the archive.
        places: Partition -> the last entry of its outbox that is in the chain, as milliseconds and number.
        intact: Whether it is as it was written.
    """

    tenant_id: str
    count: int = 0
    hash: bytes = b""
    archived: int = 0
    places: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    intact: bool = True

    def has(self, taken: Taken) -> bool:
        """Whether an outbox was taken further than to this event, which then is in the chain, but for what misled the store."""
        return taken.partition is not None and taken.at <= self.places.get(taken.partition, (0, 0))


@dataclass(frozen=True, slots=True)
class Batch:
    """What tells events that lie in no outbox from the same ones sent again.

    Attributes:
        writer: Who sends one batch after the other, and the next only when the one before is known to be chained.
        name: Of the batch; different for each.
    """

    writer: str
    name: str


class ChainBlockedError(RuntimeError):
    """A chain cannot go on, for it was tampered with; the message names it."""


class RedisChain:
    """The chains of all tenants.

    Args:
        client: The connection.
        manifest: The opened store.
    """

    def __init__(self, client: Client, manifest: Manifest) -> None:
        self._client = client
        self._secrets = manifest.secrets

    def home(self, tenant_id: str) -> Partition:
        """The partition of a tenant's chain, and of the tenant's events that are nobody's."""
        return partition_of(self._hash(tenant_id))

    def key(self, tenant_id: str) -> str:
        """Where a chain lies."""
        return self.home(tenant_id).chain(self._hash(tenant_id))

    async def tenants(self) -> list[str]:
        """Who has a chain, in order."""
        found = await self._client.batch([("HVALS", Partition(number).chains) for number in range(PARTITIONS)])
        return sorted({name.decode(errors="replace") for names in found for name in names})

    async def is_listed(self, tenant_id: str) -> bool:
        """Whether a tenant is among those of its partition, under its own hash."""
        return bool(
            await self._client.run("HGET", self.home(tenant_id).chains, self._hash(tenant_id)) == tenant_id.encode()
        )

    async def head(self, tenant_id: str) -> Head:
        """What a chain has come to; that of nobody has no links."""
        raw = await self._client.run("HGETALL", self._head_key(tenant_id))
        fields: dict[bytes, bytes] = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
        places = {int(name): _place(value) for name, value in fields.items() if name.isdigit()}
        count, added_up = _number(fields.get(b"count")), fields.get(b"hash") or beginning(tenant_id)
        head = Head(tenant_id, count, added_up, _number(fields.get(b"archived")), places)
        seal = fields.get(b"seal", b"").decode(errors="replace")
        return head if not fields or seal == self._seal(head) else replace(head, intact=False)

    async def add(self, head: Head, links: Sequence[Link], batch: Batch | None = None) -> Head | None:
        """Makes a chain longer by links that were made for this head; its new head, or None if it has another.

        Args:
            head: The head.
            links: The links; at least one.
            batch: What they are of, if they lie in no outbox. If its last one is this one, nothing is added.

        Raises:
            ChainBlockedError: There are links behind the head that nobody added.
            BackendDown: The store does not answer; the same may be added again.
        """
        places: dict[int, tuple[int, int]] = {}
        for link in links:
            number, _, entry = link.source.partition("/")
            if number.isdigit():
                places[int(number)] = max(_place(entry.encode()), places.get(int(number), (0, 0)))
        tenant_hash = self._hash(head.tenant_id)
        home = partition_of(tenant_hash)
        following = replace(head, count=links[-1].number, hash=links[-1].hash, places={**head.places, **places})
        args: list[str | bytes | int] = [
            head.count,
            head.hash,
            following.hash,
            self._seal(following),
            tenant_hash,
            head.tenant_id,
            batch.name if batch else "",
            _BATCH_LIFE,
            head.archived,
            # As one argument, for each one costs more than what is in it.
            _msgpack.packb(
                [part for one in links for part in (one.source, one.event, one.who, one.hash)], use_bin_type=False
            ),
        ]
        for partition, (millis, entry_number) in places.items():
            args += [partition, f"{millis}-{entry_number}"]
        of_writer = home.audit_batch(f"{tenant_hash}:{batch.writer if batch else ''}")
        keys = [home.chain(tenant_hash), home.chain_head(tenant_hash), home.chains, of_writer]
        answer = await self._client.script(_ADD, keys, args)
        if answer == b"had":
            return head
        if answer == b"blocked":
            raise ChainBlockedError(f"the chain of {head.tenant_id} ({keys[0]}) has links behind its head")
        if answer != b"added":
            return None
        return following

    async def back(self, tenant_id: str, below: int | None = None, most: int = PAGE) -> list[Link]:
        """Links that are not archived, the newest first.

        Args:
            tenant_id: Whose.
            below: Only those with a smaller number.
            most: At most so many.
        """
        start = "+" if below is None else f"({below}-0"
        found = await self._client.run("XREVRANGE", self.key(tenant_id), start, "-", "COUNT", most)
        return [link_of(entry, fields) for entry, fields in found]

    async def forth(self, tenant_id: str, until: int | None = None) -> AsyncIterator[Link]:
        """All links that are not archived, the oldest first.

        Args:
            tenant_id: Whose.
            until: The number of the last that is wanted.
        """
        start, end = "-", "+" if until is None else str(until)  # with all that somebody may have put behind it
        key = self.key(tenant_id)
        while found := await self._client.run("XRANGE", key, start, end, "COUNT", PAGE):
            for entry, fields in found:
                yield link_of(entry, fields)
            start = "(" + found[-1][0].decode()

    async def link(self, tenant_id: str, number: int) -> Link | None:
        """One link; None if it is not there, or archived."""
        found = await self._client.run("XRANGE", self.key(tenant_id), f"{number}-0", f"{number}-0")
        return link_of(*found[0]) if found else None

    async def archived(self, tenant_id: str, number: int) -> None:
        """Takes links out, up to this number, that are durable in the archive. Idempotent.

        Raises:
            ChainBlockedError: The head is not as it was written.
            BackendDown: The store does not answer, or others add to the chain without a pause.
        """
        keys = [self.key(tenant_id), self._head_key(tenant_id)]
        for _ in range(_TRIES):
            head = await self.head(tenant_id)
            if not head.intact:
                raise ChainBlockedError(f"the head of the chain of {tenant_id} was changed")
            following = replace(head, archived=max(number, head.archived))
            args: list[str | bytes | int] = [
                number,
                head.count,
                head.hash,
                head.archived,
                following.archived,
                self._seal(following),
            ]
            if await self._client.script(_ARCHIVED, keys, args):
                return
        raise BackendDown("Others add to one chain without a pause")

    async def among(self, tenant_id: str, taken: Sequence[Taken]) -> set[str]:
        """The sources of those events of outboxes that are in the chain and not archived.

        Args:
            tenant_id: Whose.
            taken: The events. What of an outbox was chained before the oldest of them is not looked at.
        """
        wanted = {one.source: one.event for one in taken}
        oldest: dict[str, tuple[int, int]] = {}
        for one in taken:
            name = one.source.partition("/")[0]
            oldest[name] = min(one.at, oldest.get(name, one.at))
        there: set[str] = set()
        below = None
        while oldest and len(there) < len(wanted) and (links := await self.back(tenant_id, below)):
            for link in links:
                if wanted.get(link.source) == link.event:
                    there.add(link.source)
                name, _, entry = link.source.partition("/")
                if name in oldest and _place(entry.encode()) < oldest[name]:
                    del oldest[name]
            below = links[-1].number
        return there

    def _head_key(self, tenant_id: str) -> str:
        return self.home(tenant_id).chain_head(self._hash(tenant_id))

    def _seal(self, head: Head) -> str:
        # Whoever could raise `archived` would have a chain that belies its signed head taken for one that is archived so far.
        said = ",".join(f"{number}:{millis}-{entry}" for number, (millis, entry) in sorted(head.places.items()))
        parts = (head.tenant_id, str(head.count), head.hash.hex(), str(head.archived), said)
        return self._secrets.sign("chain head", *parts)

    def _hash(self, tenant_id: str) -> str:
        return self._secrets.hash("audit", tenant_id)


def link_of(entry: bytes, fields: Mapping[bytes, bytes]) -> Link:
    """A link as the stream has it. What is missing in one that was tampered with is empty, and it has no hash."""
    number, _, rest = entry.partition(b"-")
    whole = rest == b"0" and set(fields) == {b"s", b"e", b"w", b"h"}
    return Link(
        int(number),
        fields.get(b"s", b"").decode(errors="replace"),
        fields.get(b"e", b""),
        fields.get(b"w", b""),
        fields.get(b"h", b"") if whole else b"",
    )


def _place(value: bytes) -> tuple[int, int]:
    millis, _, number = value.partition(b"-")
    return (_number(millis), _number(number)) if millis.isdigit() else (0, 0)


def _number(value: Any) -> int:
    return int(value) if value and value.isdigit() else 0
