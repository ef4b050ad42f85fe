"""Another master key for a store that several servers share."""

from __future__ import annotations

import os

import pytest

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.stores.keyring import KeyringError, MasterKeys, wrapping_id
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.rotation import rotate_master
from memoryos_server.stores.scope import Partition
from tests.stores.redis_fixtures import EXPECTED, Valkey, erase

OLD, NEW = os.urandom(32).hex(), os.urandom(32).hex()


async def test_rotate_when_two_servers_run_then_both_go_on_and_the_new_key_alone_opens_everything(
    valkey: Valkey,
) -> None:
    async with RedisStore.connect(valkey.url, MasterKeys(OLD, None), EXPECTED) as first:
        people = [await first.subjects.open("acme", f"user {n}") for n in range(300)]
        await erase(first, people[0])
        digest = first.manifest.secrets.hash("x", "y")
    both = MasterKeys(NEW, None, previous=OLD)
    async with (
        RedisStore.connect(valkey.url, both, EXPECTED) as one,
        RedisStore.connect(valkey.url, MasterKeys(NEW, None, previous=OLD), EXPECTED) as other,
    ):
        await other.subjects.find("acme", "user 1")
        before = await other.subjects.open("acme", "just before")
        done = await rotate_master(one.client, one.manifest.master)
        assert (done.rewrapped, done.left) == (300, 0)
        after = await other.subjects.open("acme", "just after")
        for subject, key in ((before, NEW), (after, NEW)):
            wrapped = await one.client.run("HGET", Partition(subject.partition).keyring, subject.id)
            assert wrapping_id(wrapped) == MasterKeys(key, None).new().id
        assert await other.subjects.find("acme", "user 2") == people[2]
        with pytest.raises(Invalid, match="already"):
            await rotate_master(one.client, one.manifest.master)
    async with RedisStore.connect(valkey.url, MasterKeys(NEW, None), EXPECTED) as alone:
        assert alone.manifest.secrets.hash("x", "y") == digest
        assert [await alone.subjects.by_id(one.id) for one in people] == [None, *people[1:]]
        assert await alone.subjects.find("acme", "just after") == after
    with pytest.raises(KeyringError, match=MasterKeys(NEW, None).new().id):
        async with RedisStore.connect(valkey.url, MasterKeys(OLD, None), EXPECTED):
            pass
