"""Subjects and their keys on the Redis side."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import orjson

from memoryos_server.domain.core.faults import BackendDown, Stale
from memoryos_server.domain.ports import Subject
from memoryos_server.stores.keyring import KEY_BYTES, KeyringError
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.page_tokens import opened_token, sealed_token
from memoryos_server.stores.redis_cache import Cache
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import PARTITIONS, STORE_KEYRING, Partition, Scope, is_subject_id, partition_of
from memoryos_server.stores.sealing import SealBroken, Sealer

KIND = "subject"
"""The kind of message that says that a subject's epoch is over, or that it decided on its consent."""

USER = "subject"
"""What a (tenant, user) is hashed as."""

TENANT_USER = "\x00tenant"
"""Stands for a tenant as a whole. No person has such an id: control characters are refused at the door."""

_AT_ONCE = 100
_LOOKED_AT = 2000
"""How many subjects one page of users looks at: some 60 ms of work."""

_log = logging.getLogger(__name__)

_OPEN = Script(
    "open_subject",
    """
    -- KEYS lookup, subject record, keyring. ARGV: lookup hash, subject id, wrapped key, who.
    -- Another id is there already: says it, changes nothing. Else makes record and key, each if missing. This id was erased
    -- meanwhile, and the call is sent again: says '', changes nothing.
    local sid = redis.call('HGET', KEYS[1], ARGV[1])
    if sid and sid ~= ARGV[2] then return {sid} end
    if redis.call('HEXISTS', KEYS[2], 'erased') == 1 then return {''} end
    if not sid then
      redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
      redis.call('HSETNX', KEYS[2], 'epoch', '1')
      redis.call('HSET', KEYS[2], 'lookup', ARGV[1])
    end
    if redis.call('HSETNX', KEYS[3], ARGV[2], ARGV[3]) == 1 then
      redis.call('HSET', KEYS[2], 'who', ARGV[4])
    end
    return {ARGV[2], redis.call('HGET', KEYS[2], 'epoch'), redis.call('HGET', KEYS[2], 'who'),
            redis.call('HGET', KEYS[2], 'consent') or '', redis.call('HGET', KEYS[3], ARGV[2])}
    """,
)

CONSENT = """
    local function is_withheld(record, epoch, required)
      local decided = redis.call('HGET', record, 'consent')
      return decided == epoch .. ':0' or (required == '1' and decided ~= epoch .. ':1')
    end
"""
"""What scripts begin with that keep something of a person only with the consent there is, or, if `required`, must be."""

SCRIPTS = (_OPEN,)


@dataclass(frozen=True, slots=True)
class _Known:
    subject: Subject
    sealer: Sealer
    consent: bool | None


class RedisSubjects:
    """The ports `Subjects`, `People` and `Sealers`.

    What is cached is looked at again after a while, and used past that only while the store is down. An old epoch in
    the cache does no harm: every write checks it in the store, and `forget` follows.

    Args:
        client: The connection.
        manifest: The opened store.
        capacity: The most subjects cached.
        fresh_seconds: How long a cached subject needs no second look.
        live: Whether changes of other replicas are heard; while they are not, every look goes to the store.
        ended: Told of a subject whose epoch was found to be over.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        *,
        capacity: int = 8192,
        fresh_seconds: float = 60.0,
        live: Callable[[], bool] = lambda: True,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._live = live
        self._ended = ended
        self._client = client
        self._manifest = manifest
        self._known: Cache[str, _Known] = Cache(capacity, fresh_seconds)
        self._names: Cache[tuple[str, str], str] = Cache(capacity, float("inf"))

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        """The subject, or None if the user was never heard of, or is erased."""
        if named := self._names.get((tenant_id, user_id)):
            known = await self._load(named[0])
            if known is not None:
                return known.subject
            self._names.drop((tenant_id, user_id))
        lookup = self.lookup(tenant_id, user_id)
        raw = await self._client.run("HGET", partition_of(lookup).lookup, lookup)
        if raw is None:
            return None
        known = await self._load(raw.decode())
        if known is None:
            return None
        self._names.put((tenant_id, user_id), known.subject.id)
        return known.subject

    async def present(self, tenant_id: str, user_id: str) -> str:
        """The id of who a user is now, "" for nobody: as the store has it this moment, and whether or not the key opens.

        Raises:
            BackendDown: The store does not answer.
        """
        lookup = self.lookup(tenant_id, user_id)
        partition = partition_of(lookup)
        raw = await self._client.run("HGET", partition.lookup, lookup)
        if raw is None or not await self._client.run("HEXISTS", partition.keyring, raw):
            return ""
        return str(raw.decode())

    async def known(self, named: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of (tenant, user) whom `find` may find: all the others were never heard of, or are erased.

        Raises:
            BackendDown: The store does not answer.
        """
        new = [whose for whose in named if self._names.get(whose) is None]
        lookups = [self.lookup(*whose) for whose in new]
        found = await self._client.batch([("HGET", partition_of(lookup).lookup, lookup) for lookup in lookups])
        strangers = {whose for whose, raw in zip(new, found, strict=True) if raw is None}
        return [whose for whose in named if whose not in strangers]

    async def open(self, tenant_id: str, user_id: str) -> Subject:
        """The subject, made if need be. Its key is durable before this returns; concurrent calls give one subject."""
        found = await self.find(tenant_id, user_id)
        if found is not None:
            return found
        lookup = self.lookup(tenant_id, user_id)
        partition = partition_of(lookup)
        subject_id = lookup[:2] + os.urandom(15).hex()
        await self._present_master()
        while True:
            generation = self._known.generation
            key = os.urandom(KEY_BYTES)
            wrapped = self._manifest.master.wrap("subject", subject_id, key)
            who = self._identity(key, subject_id).seal("who", orjson.dumps([tenant_id, user_id]))
            answer = await self._client.script(
                _OPEN,
                [partition.lookup, partition.subject(subject_id), partition.keyring],
                [lookup, subject_id, wrapped, who],
            )
            if len(answer) > 1:
                known = self._read(subject_id, *answer[1:])
                self._known.put(subject_id, known, generation)
                self._names.put((tenant_id, user_id), subject_id)
                return known.subject
            # Somebody was first; or the id was erased while the call was under way.
            subject_id = answer[0].decode() or lookup[:2] + os.urandom(15).hex()

    async def _present_master(self) -> None:
        """Sees to it that what is wrapped now is wrapped by the store's present master key, which another server may change."""
        present = (await self._client.run("HGET", STORE_KEYRING, "master_key")) or b""
        if present.decode() not in ("", self._manifest.master.id):
            self._manifest.master.use(present.decode())

    async def open_tenant(self, tenant_id: str) -> Subject:
        """What stands for a tenant as a whole: its key seals what all of the tenant's people share."""
        return await self.open(tenant_id, TENANT_USER)

    async def by_id(self, subject_id: str) -> Subject | None:
        """The subject of an id, or None."""
        if not is_subject_id(subject_id):
            return None
        known = await self._load(subject_id)
        return known.subject if known else None

    async def users(self, tenant_id: str, after: str, most: int) -> tuple[list[Subject], str]:
        """Subjects of a tenant in the order of their ids, and the token to go on with, "" at the end.

        There is no list of a tenant's people: those of all tenants are looked at, at most `_LOOKED_AT` in a call. A partition's
        ids are read at once, 32 bytes each. A call may therefore end at some other tenant's person, and the token is sealed.

        Raises:
            Invalid: The token was given out for no page of this tenant's.
            BackendDown: The store does not answer.
        """
        whose = f"users {tenant_id}"
        found, last = await self._users(tenant_id, opened_token(self._manifest.secrets, whose, after), most)
        return found, sealed_token(self._manifest.secrets, whose, last)

    async def _users(self, tenant_id: str, after: str, most: int) -> tuple[list[Subject], str]:
        """The same, by the subject id to go on behind."""
        found: list[Subject] = []
        looked, begin = 0, int(after[:2], 16) if is_subject_id(after) else 0
        partitions = [Partition(number) for number in range(begin, PARTITIONS)]
        sizes = await self._client.batch([("HLEN", partition.keyring) for partition in partitions])
        for partition in [one for one, size in zip(partitions, sizes, strict=True) if size]:
            names = sorted(name.decode() for name in await self._client.run("HKEYS", partition.keyring))
            names = [name for name in names if name > after]
            for start in range(0, len(names), _AT_ONCE):
                page = names[start : start + _AT_ONCE]
                for name, subject in zip(page, await self._all(partition, page), strict=True):
                    after = name
                    if subject and subject.tenant_id == tenant_id and subject.user_id != TENANT_USER:
                        found.append(subject)
                    if len(found) == most:
                        return found, after
                looked += len(page)
                if looked >= _LOOKED_AT:
                    return found, after
        return found, ""

    async def _all(self, partition: Partition, names: Sequence[str]) -> list[Subject | None]:
        """A partition's subjects by their ids, without a place in the cache, which others need more."""
        keys = await self._client.run("HMGET", partition.keyring, *names)
        records = await self._client.batch([("HMGET", partition.subject(name), "epoch", "who") for name in names])
        found: list[Subject | None] = []
        for name, wrapped, (epoch, who) in zip(names, keys, records, strict=True):
            found.append(None)
            if wrapped is not None and epoch is not None and who is not None:
                try:
                    found[-1] = self._read(name, epoch, who, None, wrapped).subject
                except (KeyringError, SealBroken) as error:
                    _log.error("a person is left out of a list, whose key does not open: %s", error)
        return found

    async def sealer(self, subject: Subject) -> Sealer:
        """The subject's sealer.

        Raises:
            Stale: The subject's epoch is over, its key is destroyed.
            BackendDown: The key is not cached and the store does not answer.
        """
        if (found := self._known.get(subject.id)) and found[0].subject == subject:
            return found[0].sealer
        known = await self._load(subject.id)
        if known is None or known.subject != subject:
            raise Stale("The user's data was erased meanwhile")
        return known.sealer

    async def consent(self, subject: Subject) -> bool | None:
        """What the subject decided last of `data_processing`; None for nothing.

        Raises:
            BackendDown: The subject is not cached and the store does not answer.
        """
        known = await self._load(subject.id)
        return None if known is None or known.subject != subject else known.consent

    async def scope(self, subject: Subject) -> Scope:
        """The subject's keys and filters.

        Raises:
            Stale: The subject's epoch is over.
            BackendDown: As `sealer`.
        """
        return Scope(subject, await self.sealer(subject))

    def lookup(self, tenant_id: str, user_id: str) -> str:
        """The keyed hash by which a (tenant, user) is found; its first byte is the partition."""
        return self._manifest.secrets.hash(USER, tenant_id, user_id)

    def forget(self, subject_id: str) -> None:
        """Drops a subject, whose epoch was found to be over, from the cache, and has others do so."""
        self.heard(subject_id)
        self._ended(subject_id)

    def heard(self, subject_id: str) -> None:
        """Drops a subject, its key and its name from the cache, because another replica found its epoch to be over."""
        self._known.drop(subject_id)
        self._names.drop_if(lambda named: named == subject_id)

    def distrust(self) -> None:
        """Looks at every cached subject again before its next use."""
        self._known.distrust()

    async def _load(self, subject_id: str) -> _Known | None:
        cached = self._known.get(subject_id)
        if cached and cached[1] and self._live():
            return cached[0]
        generation = self._known.generation
        partition = partition_of(subject_id)
        try:
            (epoch, who, decided), wrapped = await self._client.batch(
                [
                    ("HMGET", partition.subject(subject_id), "epoch", "who", "consent"),
                    ("HGET", partition.keyring, subject_id),
                ],
                atomic=True,
            )
        except BackendDown:
            if cached:
                return cached[0]
            raise
        if epoch is None or who is None or wrapped is None:
            if cached:
                self._known.drop(subject_id)
            return None
        same = cached is not None and cached[0].subject.epoch == int(epoch)
        if cached and same:
            known = replace(cached[0], consent=_decided(epoch, decided))
        else:
            known = self._read(subject_id, epoch, who, decided, wrapped)
        self._known.put(subject_id, known, generation)
        return known

    def _read(self, subject_id: str, epoch: bytes, who: bytes, decided: bytes | None, wrapped: bytes) -> _Known:
        key = self._manifest.master.unwrap("subject", subject_id, wrapped)
        tenant_id, user_id = orjson.loads(self._identity(key, subject_id).open("who", who))
        subject = Subject(subject_id, tenant_id, user_id, int(epoch))
        sealer = Sealer(key, tenant_id, subject_id, sealing=self._manifest.sealing)
        return _Known(subject, sealer, _decided(epoch, decided))

    def _identity(self, key: bytes, subject_id: str) -> Sealer:
        # Who it is must open before the tenant is known: hence no tenant in its place.
        return Sealer(key, "", subject_id, sealing=self._manifest.sealing)


def _decided(epoch: bytes, decided: bytes | None) -> bool | None:
    """What a record says of consent; what it said in another epoch counts for nothing."""
    return {epoch + b":1": True, epoch + b":0": False}.get(decided or b"")
