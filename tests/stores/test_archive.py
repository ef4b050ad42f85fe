"""Archive files: nothing is lost, doubled, or changed unseen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.archive import Archive, ArchiveError
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.retention import Retention
from memoryos_server.stores.sequencer import Sequencer


def records(start: int, count: int = 10) -> list[list[object]]:
    return [[f"t{number % 3}", f"{number}-0", b"event %d" % number, b""] for number in range(start, start + count)]


def filled(directory: Path, batches: int = 20) -> Archive:
    archive = Archive(directory, file_bytes=1000)
    for number in range(batches):
        archive.append(number, records(number * 10))
    return archive


def test_archive_when_opened_again_then_goes_on_and_is_intact(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Archive(tmp_path, file_bytes=1000)
    assert again.last["place"] == 19
    again.append(20, records(200))
    assert again.verify() == Archive(tmp_path).verify() == sum(again.totals.values()) == 210
    assert len(list(tmp_path.iterdir())) > 3
    found = [record[1] for batch in again.backwards() for record in reversed(batch["records"])]
    assert found == [f"{number}-0" for number in range(209, -1, -1)]


def test_archive_when_its_last_batch_is_torn_anywhere_then_only_that_is_cut_off(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.append(1, records(0))
    path = tmp_path / "000001.archive"
    before = path.stat().st_size
    archive.append(2, records(10))
    whole = path.read_bytes()
    for end in range(before, len(whole)):
        path.write_bytes(whole[:end])
        opened = Archive(tmp_path)
        assert (sum(opened.totals.values()), path.stat().st_size) == (10, before)
        opened.append(2, records(10))
        assert path.read_bytes() == whole


def test_archive_when_any_byte_is_changed_or_a_file_is_gone_then_verify_says_so(tmp_path: Path) -> None:
    archive = filled(tmp_path)
    files = sorted(tmp_path.iterdir())
    for path in files[:3]:
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArchiveError):
                archive.verify()
        path.write_bytes(whole[:-1])
        with pytest.raises(ArchiveError):
            archive.verify()
        path.write_bytes(whole)
    assert archive.verify() == 200
    files[1].unlink()
    with pytest.raises(ArchiveError, match="has no file 2"):
        archive.verify()


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_archive_when_the_disk_is_full_then_is_as_before_and_goes_on_later(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        archive = Archive(tmp_path / "a")
        archive.append(1, records(0))
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"x" * 40_000)
        big = [["t", "1-0", b"y" * 30_000, b""]]
        with pytest.raises(OSError, match="No space left"):
            archive.append(2, big)
        assert archive.verify() == 10
        ballast.unlink()
        archive.append(2, big)
        assert archive.verify() == Archive(tmp_path / "a").verify() == 11
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def event(number: int) -> AuditEvent:
    user = f"user{number % 7}"
    return AuditEvent(uuid7(), utc_now(), "memory.read", f"t{number % 2}", user, f"r{number}", "read", "ok", "me")


def retained(store: RedisStore, directory: Path, *, audit_days: float, shared: bool = False) -> Retention:
    heads = SignedHeads(directory / "keys", store.manifest.store_id, store.manifest.secrets)
    sequencer = Sequencer(store.client, store.audit, Adder(store.chain, heads))
    return Retention(store.client, store.chain, sequencer.now, directory, audit_days=audit_days, shared=shared)


async def test_retention_when_events_are_old_then_they_are_moved_counted_and_still_read(
    store: RedisStore, tmp_path: Path
) -> None:
    for number in range(7):
        await store.subjects.open(f"t{number % 2}", f"user{number}")
    events = [event(number) for number in range(1000)]
    await store.audit.append(events)
    retention = retained(store, tmp_path, audit_days=90)
    assert await retention.move() == 0  # none is that old
    assert await retained(store, tmp_path, audit_days=0).move() == 0  # never, whatever their age
    before = [one async for one in store.audit.tail(None, 2000)]
    assert await retention.move(0) == len(before) == 1000
    assert [one async for one in store.audit.tail(None, 2000)] == []
    assert [await store.audit.total(tenant) for tenant in (None, "t0")] == [1000, 500]
    assert [await retention.total(tenant) for tenant in (None, "t0", "t9")] == [1000, 500, 0]
    opened = await store.audit.opened(await retention.newest(None, 2000))
    assert sorted(one.resource for one in opened) == sorted(one.resource for one in events)
    assert {one.id: one for one in opened} == {one.id: one for one in before}
    assert [one.id for one in await store.audit.opened(await retention.newest("t1", 5))] == [
        one.id for one in before if one.tenant_id == "t1"
    ][-5:]
    assert await retention.verify() == 1000


async def test_retention_when_something_unforeseen_fails_then_it_is_said_and_tried_again(
    store: RedisStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("unforeseen")])
    moved = asyncio.Event()

    async def sequence() -> None:
        for error in failures:
            raise error
        moved.set()

    async with (
        Retention(store.client, store.chain, sequence, tmp_path, audit_days=90, seconds=0.01),
        asyncio.timeout(5),
    ):
        await moved.wait()
    assert len([line for line in caplog.messages if "were not archived" in line]) == 1


async def test_retention_when_no_age_is_set_then_only_a_given_one_moves(store: RedisStore, tmp_path: Path) -> None:
    await store.audit.append([event(number) for number in range(30)])
    retention = retained(store, tmp_path, audit_days=0)  # never, says the setting
    assert await retention.move() == 0
    assert await store.audit.total(None) == 30
    assert await retention.move(0) == 30


async def test_retention_when_others_share_the_store_then_nothing_is_carried_off(
    store: RedisStore, tmp_path: Path
) -> None:
    await store.audit.append([event(number) for number in range(30)])
    retention = retained(store, tmp_path, audit_days=0, shared=True)
    for days in (None, 0, 90):
        with pytest.raises(Invalid, match="share"):
            await retention.move(days)
    assert await store.audit.total(None) == 30
    assert await retention.verify() == 0


async def test_retention_when_it_died_between_archive_and_store_then_no_event_is_there_twice(
    store: RedisStore, tmp_path: Path
) -> None:
    await store.audit.append([event(number) for number in range(30)])
    first = retained(store, tmp_path, audit_days=90)
    await first.move(0)
    archive = Archive(tmp_path / "audit")
    tenant = archive.last["records"][0][0]
    key = store.chain.key(tenant)
    await store.client.run("DEL", key)
    for _, number, source, event_, who, added in archive.last["records"]:  # as if the last batch had not been removed
        await store.client.run("XADD", key, f"{number}-0", "s", source, "e", event_, "w", who, "h", added)
    again = retained(store, tmp_path, audit_days=90)
    assert await again.move(0) == 0
    assert await again.verify() == 30
    assert await store.client.run("XLEN", key) == 0
