"""Whatever is done to chains, archive files and signed heads, `verify` finds it and names the place.

A chain is built once. Each attempt changes a copy of it, verifies, and puts it back. Attempts are random, and follow from a
number that is printed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.stores.archive import stored_batches
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.redis import RedisStore
from tests.stores.chain_support import Audited, event

TENANTS = ("acme", "north", "_system")
SEED = 20_271

Entries = list[tuple[bytes, dict[bytes, bytes]]]


async def built(store: RedisStore, home: Path) -> Audited:
    """Three chains, each of forty events in the archive and forty in the store."""
    audited = Audited(store, home)
    await store.subjects.open("acme", "ann")
    for part in range(4):
        await store.audit.append([event(part * 20 + n, tenant) for n in range(20) for tenant in TENANTS])
        await audited.sequencer.now()
        if part < 2:
            await audited.retention.move(0)
    summary = await audited.intact()
    assert (summary["events"], summary["archived"], summary["unsigned"]) == (240, 120, [])
    return audited


class Tamperer:
    """Tampers with one thing after another."""

    def __init__(self, audited: Audited, seed: int) -> None:
        self.audited = audited
        self.random = random.Random(seed)  # noqa: S311  # repeatable, guards nothing
        self.copy = audited.home / "copy"

    async def once(self) -> None:
        """One attempt of a random kind."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.byte_in_store,
            self.byte_in_store,
            self.byte_in_archive,
            self.byte_in_archive,
            self.byte_in_head,
            self.byte_in_signed_head,
            self.removal,
            self.swap,
            self.insertion,
            self.cut_in_store,
            self.older_state,
            self.cut_in_archive,
            self.archived_record,
            self.file_gone,
        ]
        await self.random.choice(kinds)()

    def changed(self, raw: bytes) -> tuple[bytes, int]:
        """The bytes with one changed, and which."""
        at = self.random.randrange(len(raw))
        return raw[:at] + bytes([(raw[at] + self.random.randrange(1, 256)) % 256]) + raw[at + 1 :], at

    async def in_store(self, tampered: Entries, tenant: str, number: int, what: str) -> None:
        before = await self.audited.entries(tenant)
        await self.audited.write_entries(tenant, tampered)
        problems, _ = await self.audited.verify()
        await self.audited.write_entries(tenant, before)
        assert {one["tenant_id"] for one in problems} == {tenant}, (what, number, problems)
        assert any(
            one["number"] == number and self.audited.store.chain.key(tenant) in one["place"] for one in problems
        ), (
            what,
            number,
            problems,
        )

    async def chosen(self) -> tuple[str, Entries]:
        tenant = self.random.choice(TENANTS)
        return tenant, await self.audited.entries(tenant)

    async def byte_in_store(self) -> None:
        tenant, entries = await self.chosen()
        at = self.random.randrange(len(entries))
        entry, fields = entries[at]
        name = self.random.choice([name for name in fields if fields[name]])
        entries[at] = entry, {**fields, name: self.changed(fields[name])[0]}
        await self.in_store(entries, tenant, int(entry.split(b"-")[0]), f"a byte of {name!r}")

    async def removal(self) -> None:
        tenant, entries = await self.chosen()
        at = self.random.randrange(len(entries))
        entry, _ = entries.pop(at)
        await self.in_store(entries, tenant, int(entry.split(b"-")[0]), "removed")

    async def swap(self) -> None:
        tenant, entries = await self.chosen()
        first, second = sorted(self.random.sample(range(len(entries)), 2))
        (one, its), (other, others) = entries[first], entries[second]
        entries[first], entries[second] = (one, others), (other, its)
        await self.in_store(entries, tenant, int(one.split(b"-")[0]), "swapped")

    async def insertion(self) -> None:
        tenant, entries = await self.chosen()
        at = self.random.randrange(len(entries))
        entry, fields = entries[at]
        number = int(entry.split(b"-")[0])
        entries.insert(at + 1, (b"%d-1" % number, dict(fields)))
        await self.in_store(entries, tenant, number + 1, "inserted")

    async def cut_in_store(self) -> None:
        tenant, entries = await self.chosen()
        left = self.random.randrange(1, len(entries))
        number = int(entries[left][0].split(b"-")[0])
        await self.in_store(entries[:left], tenant, number, "cut off")

    async def older_state(self) -> None:
        """Chain and head as they may once have been, sealed by whoever has the store's secret: only a signed head tells."""
        tenant, entries = await self.chosen()
        chain = self.audited.store.chain
        head = await chain.head(tenant)
        left = self.random.randrange(1, len(entries))
        number, fields = int(entries[left - 1][0].split(b"-")[0]), entries[left - 1][1]
        hashed = self.audited.store.manifest.secrets.hash("audit", tenant)
        key = chain.home(tenant).chain_head(hashed)
        client = self.audited.store.client
        kept = await client.run("DUMP", key)
        seal = chain._seal(replace(head, count=number, hash=fields[b"h"]))
        await client.run("HSET", key, "count", number, "hash", fields[b"h"], "seal", seal)
        await self.in_store(entries[:left], tenant, number + 1, "an older state")
        await client.run("RESTORE", key, 0, kept, "REPLACE")

    async def byte_in_head(self) -> None:
        tenant = self.random.choice(TENANTS)
        store = self.audited.store
        key = store.chain.home(tenant).chain_head(store.manifest.secrets.hash("audit", tenant))
        fields: dict[bytes, bytes] = await store.client.run("HGETALL", key)
        name = self.random.choice(sorted(fields))
        value, _ = self.changed(fields[name])
        await store.client.run("HSET", key, name, value)
        problems, _ = await self.audited.verify()
        await store.client.run("HSET", key, name, fields[name])
        assert {one["tenant_id"] for one in problems} == {tenant}, (name, fields[name], value, problems)

    async def byte_in_signed_head(self) -> None:
        tenant = self.random.choice(TENANTS)
        path = self.audited.heads.path(tenant)
        whole = path.read_bytes()
        path.write_bytes(self.changed(whole)[0])
        problems, _ = await self.audited.verify()
        path.write_bytes(whole)
        assert [(one["tenant_id"], one["place"]) for one in problems] == [(tenant, str(path))]

    async def in_archive(self, tamper: Callable[[Path], None]) -> list[Any]:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.audited.retention.directory, self.copy)
        tamper(self.copy)
        problems, _ = await self.audited.verify(archive=self.copy)
        assert problems
        return problems

    async def byte_in_archive(self) -> None:
        path = self.random.choice(sorted(self.audited.retention.directory.iterdir()))
        raw, at = self.changed(path.read_bytes())
        problems = await self.in_archive(lambda copy: (copy / path.name).write_bytes(raw) and None)
        within = max([one.at for one in stored_batches(self.audited.retention.directory) if one.at <= at], default=0)
        place = f"{self.copy / path.name} at byte {within}"
        assert any(one["place"] == place for one in problems), (at, place, problems)

    async def cut_in_archive(self) -> None:
        path = sorted(self.audited.retention.directory.iterdir())[-1]
        whole = path.read_bytes()
        left = self.random.randrange(len(whole))
        problems = await self.in_archive(lambda copy: (copy / path.name).write_bytes(whole[:left]) and None)
        # Whose events are missing, and from which on.
        assert any(one["tenant_id"] in TENANTS and "missing" in one["problem"] for one in problems), (left, problems)

    async def archived_record(self) -> None:
        """A record of the archive removed, swapped or doubled, with all checksums made anew."""
        from memoryos_server.stores.archive import Archive

        batches = [stored.batch for stored in stored_batches(self.audited.retention.directory)]
        batch = self.random.choice(batches)
        records = batch["records"]
        at = self.random.randrange(len(records) - 1)
        tenant, number = records[at][:2]
        kind = self.random.choice(("removed", "swapped", "doubled"))
        if kind == "removed":
            del records[at]
        elif kind == "swapped":
            records[at], records[at + 1] = records[at + 1], records[at]
        else:
            records.insert(at, [*records[at][:1], number, "000/1-1", b"{}", b"", bytes(32)])

        def forge(copy: Path) -> None:
            shutil.rmtree(copy)
            forged = Archive(copy)
            for one in batches:
                forged.append(one["place"], one["records"])

        problems = await self.in_archive(forge)
        assert {one["tenant_id"] for one in problems} == {tenant}, (kind, problems)
        assert any(one["number"] == number and str(self.copy) in one["place"] for one in problems), (
            kind,
            number,
            problems,
        )

    async def file_gone(self) -> None:
        if self.random.random() < 0.5:
            problems = await self.in_archive(lambda copy: shutil.rmtree(copy))
            assert {(one["tenant_id"], one["number"]) for one in problems} >= {(tenant, 1) for tenant in TENANTS}
            return
        tenant, _ = await self.chosen()
        store = self.audited.store
        hashed = store.manifest.secrets.hash("audit", tenant)
        home = store.chain.home(tenant)
        keys = [home.chain(hashed), home.chain_head(hashed)]
        dumps = [await store.client.run("DUMP", key) for key in keys]
        await store.client.batch([("DEL", key) for key in keys])
        await store.client.run("HDEL", home.chains, hashed)
        problems, _ = await self.audited.verify()
        for key, raw in zip(keys, dumps, strict=True):
            await store.client.run("RESTORE", key, 0, raw)
        await store.client.run("HSET", home.chains, hashed, tenant)
        assert {one["tenant_id"] for one in problems} == {tenant}


async def _tamper(store: RedisStore, home: Path, times: int) -> None:
    audited = await built(store, home)
    tamperer = Tamperer(audited, SEED)
    print(f"seed {SEED}")
    for number in range(times):
        try:
            await tamperer.once()
        except AssertionError as error:
            raise AssertionError(f"attempt {number} of seed {SEED}: {error}") from error
    await audited.intact()  # every attempt was taken back


@pytest.mark.timeout(120)
async def test_verify_when_anything_is_tampered_with_then_it_is_found_and_its_place_named(
    store: RedisStore, tmp_path: Path, valkey: object
) -> None:
    await _tamper(store, tmp_path, 200)


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_verify_when_a_thousand_things_are_tampered_with_then_each_is_found(
    store: RedisStore, tmp_path: Path, valkey: object
) -> None:
    await _tamper(store, tmp_path, 1000)


async def test_verify_when_no_head_was_kept_here_then_says_for_which_chains_an_end_could_be_missing(
    store: RedisStore, tmp_path: Path, valkey: object
) -> None:
    audited = await built(store, tmp_path)
    elsewhere = SignedHeads(tmp_path / "other", store.manifest.store_id, store.manifest.secrets)
    problems, summary = await audited.verify(heads=elsewhere)
    assert problems == []
    assert summary["unsigned"] == sorted(TENANTS)
