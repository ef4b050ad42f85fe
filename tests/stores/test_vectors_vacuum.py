"""The embedded engine's files hold nothing of what was erased, everybody else's points are whole, and nobody waits."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
from pathlib import Path

import pytest

from memoryos_server.stores.edge_shards import Shards
from memoryos_server.stores.edge_vacuum import Vacuum
from tests.stores.embedded_fixtures import Keys, indexed, kill, opened, restarted, subject, turn


def words(count: int) -> list[str]:
    """Random words without any prefix in common."""
    return ["".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(26)) for _ in range(count)]


def raw(data: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((data / "vectors").rglob("*")) if path.is_file())


def hidden(word: str) -> bytes:
    return word[4:-4].encode()


def vector(number: int) -> list[float]:
    return [float(number % 7 + 1), float(number % 5), float(number % 3), 1.0]


@pytest.mark.timeout(120)
async def test_vacuum_when_somebody_is_erased_then_the_files_hold_nothing_of_him_and_the_others_are_whole(
    tmp_path: Path,
) -> None:
    ann, bob = subject("ann"), subject("bob")
    hers, his = words(120), words(120)
    async with opened(tmp_path, Keys(sealing=False)) as (stores, vectors):
        for who, said in ((ann, hers), (bob, his)):
            turns = [indexed(turn(word, seq=at), small=vector(at)) for at, word in enumerate(said, 1)]
            await vectors.insert(who, turns)
        await vectors.flush()
        before = raw(tmp_path)
        assert sum(hidden(word) in before for word in hers) > 100, "the search does not work"
        assert await vectors.erase(ann.id, "") == 120
        assert (await vectors.left(ann.id, ""), await vectors.left(bob.id, "")) == (0, 120)
        after = raw(tmp_path)
        assert any(hidden(word) in after for word in hers), "nothing would be left to do"
        for _ in range(2):  # a shard that was rewritten can be rewritten again
            await vectors.vacuum()
            after = raw(tmp_path)
            assert [word for word in hers if hidden(word) in after] == []
        assert [one.content for one in await vectors.said(bob, "s1", 0, 1000)] == his
        assert [one.content for one in await vectors.said(bob, None, 100, 1000)] == his[100:]
        assert len(await vectors.near(bob, {"small": vector(3)}, 200)) == 120
        assert await vectors.coverage() == (120, 120)
        # Nothing of her is taken any more.
        await vectors.insert(ann, [indexed(turn(hers[0]), small=vector(1))])
        assert await vectors.left(ann.id, "") == 0
        kill(stores.pids()["vectors"])
        await restarted(stores, 0)
    async with opened(tmp_path, Keys(sealing=False)) as (_, vectors):
        assert await vectors.count() == 120


@pytest.mark.timeout(120)
async def test_vacuum_when_others_write_meanwhile_then_nothing_of_theirs_is_lost(tmp_path: Path) -> None:
    bob, cat = subject("bob"), subject("cat")
    keys = Keys()
    async with opened(tmp_path, keys) as (_, vectors):
        first = [turn(f"word{number}", seq=number) for number in range(1, 601)]
        await vectors.insert(bob, [indexed(one, small=vector(one.seq)) for one in first])
        work = asyncio.create_task(vectors.vacuum())
        number = 0
        gone = []
        while not work.done():
            number += 1
            await vectors.insert(cat, [indexed(turn(f"late{number}", seq=number), small=vector(number))])
            if number <= 100:
                gone.append(first[number * 5].id)
                await vectors.remove(bob, [gone[-1]])
        await work
        await vectors.flush()
    async with opened(tmp_path, keys) as (_, vectors):
        kept = [one.content for one in first if one.id not in gone]
        assert [one.content for one in await vectors.said(bob, None, 0, 1000)] == kept
        assert len(await vectors.said(cat, None, 0, 10_000)) == number


def filled(directory: Path) -> Shards:
    import qdrant_edge as qe

    shards = Shards.open(directory, {"small": 4}, "x")
    point = qe.Point("00000000-0000-0000-0000-000000000001", {}, {"s": "a"})
    shards.write(shards.main, qe.UpdateOperation.upsert_points([point]))
    shards.flush()
    return shards


def count(shards: Shards) -> int:
    import qdrant_edge as qe

    return int(shards.main.count(qe.CountRequest(exact=True)))


def test_open_when_a_rewriting_was_cut_off_anywhere_then_the_points_are_there_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    home = tmp_path / "v"
    filled(home).close()
    # While it was copied: the copy goes.
    shutil.copytree(home / "main", home / "main.12345678")
    shards = Shards.open(home, {"small": 4}, "x")
    assert count(shards) == 1
    shards.close()
    assert not (home / "main.12345678").exists()
    # Between taking the old one away and putting the new one in its place: the old one stays.
    (home / "main").rename(home / "main.00000000")
    shutil.copytree(home / "main.00000000", home / "main.12345678")
    shards = Shards.open(home, {"small": 4}, "x")
    assert count(shards) == 1
    shards.close()
    assert sorted(path.name for path in home.glob("main*")) == ["main"]
    # Behind it: the new one stays, and the old one goes.
    (home / "main").rename(home / "main.12345678")
    (home / "main").symlink_to("main.12345678")
    shutil.copytree(home / "main.12345678", home / "main.00000000")
    shards = Shards.open(home, {"small": 4}, "x")
    assert count(shards) == 1
    shards.close()
    assert sorted(path.name for path in home.glob("main*")) == ["main", "main.12345678"]


async def test_vacuum_step_when_the_shard_is_not_being_rewritten_then_is_refused(tmp_path: Path) -> None:
    from memoryos_server.stores.edge_vacuum import Vacuum

    shards = filled(tmp_path / "v")
    vacuum = Vacuum(shards)
    with pytest.raises(LookupError):
        vacuum.step("main", False)
    with pytest.raises(LookupError):
        vacuum.step("no-such", True)
    assert vacuum.step("main", True)
    shards.abandon()
    assert vacuum.step("main", False)  # begun anew
    while vacuum.step("main", False):
        pass
    assert count(shards) == 1
    shards.close()


def test_vacuum_when_begun_again_in_the_middle_then_nothing_half_made_is_left(tmp_path: Path) -> None:
    shards = Shards.open(tmp_path / "shards", {"small": 4}, "f")
    there = sorted(path.name for path in (tmp_path / "shards").iterdir())
    vacuum = Vacuum(shards)
    assert vacuum.step("main", True)
    assert any(path.name.endswith(".new") for path in (tmp_path / "shards").iterdir())
    more = vacuum.step("main", True)
    while more:
        more = vacuum.step("main", False)
    left = sorted(path.name for path in (tmp_path / "shards").iterdir() if not path.name.startswith("main."))
    assert left == there
    with pytest.raises(LookupError):
        vacuum.step("main", False)
    shards.close()


def test_vacuum_when_the_old_files_cannot_be_deleted_then_it_fails_until_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = filled(tmp_path / "v")
    vacuum = Vacuum(shards)

    def left() -> list[str]:
        return [path.name for path in (tmp_path / "v").iterdir() if path.name.endswith(".new")]

    def rewrite() -> None:
        more = vacuum.step("main", True)
        while more:
            more = vacuum.step("main", False)

    rmtree = shutil.rmtree
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        with pytest.raises(OSError, match="could not be deleted"):
            rewrite()
        assert left()
    release = threading.Event()

    def slow(path: Path, ignore_errors: bool = False) -> None:
        release.wait(10)
        rmtree(path, ignore_errors=ignore_errors)

    rewrite()
    assert left() == []
    threading.Timer(0.1, release.set).start()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", slow)
        rewrite()
    assert release.is_set()
    assert left() == []
    assert count(shards) == 1
    shards.close()
