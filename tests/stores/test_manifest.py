from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.keyring import KeyringError, MasterKeys
from memoryos_server.stores.manifest import Expected, ManifestMismatch, VectorModel, open_manifest
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import MANIFEST, STORE_KEYRING
from tests.stores.redis_fixtures import Valkey

MINILM = VectorModel("minilm", "53aa" * 16, 384)
EXPECTED = Expected(analysis="1", vectors={"dense": MINILM})


@pytest.fixture
async def client(valkey: Valkey) -> AsyncIterator[Client]:
    made = Client(valkey.url)
    yield made
    await made.aclose()


async def test_open_when_the_store_is_new_then_makes_manifest_and_key_file(
    client: Client, master_keys: MasterKeys, tmp_path: Path
) -> None:
    made = await open_manifest(client, master_keys, EXPECTED)
    path = tmp_path / "keys" / f"{made.master.id}.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = await open_manifest(client, master_keys, EXPECTED)
    assert again.secrets.hash("x", "y") == made.secrets.hash("x", "y")
    assert (again.created_at, again.vectors, again.notes) == (made.created_at, {"dense": MINILM}, ())
    stored = await client.run("HGET", STORE_KEYRING, "secret")
    assert made.master.present.key not in stored


async def test_open_when_many_start_at_once_then_all_agree_and_no_key_is_left_over(
    valkey: Valkey, master_keys: MasterKeys, tmp_path: Path
) -> None:
    clients = [Client(valkey.url) for _ in range(8)]
    opened = await asyncio.gather(*(open_manifest(one, master_keys, EXPECTED) for one in clients))
    assert len({one.secrets.hash("x", "y") for one in opened}) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [f"{opened[0].master.id}.key"]
    for one in clients:
        await one.aclose()


@pytest.mark.parametrize(
    ("field", "value", "subject"),
    [("schema", "2", "schema"), ("partitions", "128", "partitions")],
)
async def test_open_when_the_store_is_newer_or_cut_otherwise_then_is_refused(
    client: Client, master_keys: MasterKeys, field: str, value: str, subject: str
) -> None:
    await open_manifest(client, master_keys, EXPECTED)
    await client.run("HSET", MANIFEST, field, value)
    with pytest.raises(ManifestMismatch) as refused:
        await open_manifest(client, master_keys, EXPECTED)
    assert (refused.value.subject, refused.value.stored) == (subject, value)


async def test_open_when_the_store_is_sealed_otherwise_then_is_refused_naming_both(
    client: Client, master_keys: MasterKeys
) -> None:
    await open_manifest(client, master_keys, EXPECTED)
    with pytest.raises(ManifestMismatch, match=r"sealing on.*off"):
        await open_manifest(client, master_keys, replace(EXPECTED, sealing=False))


@pytest.mark.parametrize(
    ("expected", "named"),
    [
        (replace(EXPECTED, analysis="2"), ("1", "2")),
        (replace(EXPECTED, vectors={"dense": VectorModel("other", "ab" * 32, 384)}), ("minilm", "other")),
        (replace(EXPECTED, vectors={"dense": replace(MINILM, dimension=256)}), ("384", "256")),
        (replace(EXPECTED, vectors={"http": VectorModel("other", "", 3)}), ("minilm", "other")),
    ],
    ids=["analysis", "model", "dimension", "provider"],
)
async def test_open_when_model_or_analysis_changed_then_says_so_once_naming_both(
    client: Client, master_keys: MasterKeys, expected: Expected, named: tuple[str, str]
) -> None:
    await open_manifest(client, master_keys, EXPECTED)
    (note,) = (await open_manifest(client, master_keys, expected)).notes
    assert all(name in note for name in named)
    again = await open_manifest(client, master_keys, expected)
    assert again.notes == ()
    assert again.analysis == expected.analysis
    assert expected.vectors.items() <= again.vectors.items()


async def test_open_when_the_model_comes_and_goes_then_says_so(client: Client, master_keys: MasterKeys) -> None:
    await open_manifest(client, master_keys, replace(EXPECTED, vectors={}))
    came = await open_manifest(client, master_keys, EXPECTED)
    assert "minilm" in came.notes[0]
    gone = await open_manifest(client, master_keys, replace(EXPECTED, vectors={}))
    assert "dense" in gone.notes[0]
    assert (await open_manifest(client, master_keys, EXPECTED)).notes == ()


async def test_open_when_the_master_key_is_gone_then_names_key_and_directory(
    client: Client, master_keys: MasterKeys, tmp_path: Path
) -> None:
    made = await open_manifest(client, master_keys, EXPECTED)
    path = tmp_path / "keys" / f"{made.master.id}.key"
    path.unlink()
    with pytest.raises(KeyringError, match=made.master.id) as refused:
        await open_manifest(client, master_keys, EXPECTED)
    assert str(path.parent) in str(refused.value)
    assert list(path.parent.iterdir()) == []


async def test_open_when_another_master_key_is_configured_then_names_both(client: Client) -> None:
    made = await open_manifest(client, MasterKeys("ab" * 32, None), EXPECTED)
    await open_manifest(client, MasterKeys("AB" * 32, None), EXPECTED)
    other = MasterKeys("cd" * 32, None)
    with pytest.raises(KeyringError, match=f"{made.master.id}.*{other.new().id}"):
        await open_manifest(client, other, EXPECTED)


async def test_open_when_the_keyring_of_a_backup_is_missing_then_is_refused(
    client: Client, master_keys: MasterKeys
) -> None:
    await open_manifest(client, master_keys, EXPECTED)
    await client.run("DEL", STORE_KEYRING)
    with pytest.raises(KeyringError, match="keyring is empty"):
        await open_manifest(client, master_keys, EXPECTED)


async def test_open_when_the_store_is_down_then_says_so(tmp_path: Path, master_keys: MasterKeys) -> None:
    client = Client(f"unix://{tmp_path}/nowhere")
    with pytest.raises(BackendDown):
        await open_manifest(client, master_keys, EXPECTED)
    assert not (tmp_path / "keys").exists()
    await client.aclose()


@pytest.mark.parametrize("inside", ["", "keys", "a/b"])
def test_master_keys_when_kept_in_the_data_directory_then_is_refused(tmp_path: Path, inside: str) -> None:
    with pytest.raises(KeyringError, match="kept apart"):
        MasterKeys("", tmp_path / inside, tmp_path)


def test_master_keys_when_a_link_leads_into_the_data_directory_then_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "keys").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(KeyringError, match="kept apart"):
        MasterKeys("", tmp_path / "keys", tmp_path / "data")


@pytest.mark.parametrize("text", ["", "00", "zz" * 32, "00" * 33])
def test_master_keys_when_the_file_is_no_key_then_is_refused(tmp_path: Path, text: str) -> None:
    keys = MasterKeys("", tmp_path)
    made = keys.new()
    path = tmp_path / f"{made.id}.key"
    path.write_text(text)
    with pytest.raises(KeyringError):
        keys.get(made.id)


def test_master_keys_when_the_file_is_open_to_others_then_is_refused(tmp_path: Path) -> None:
    keys = MasterKeys("", tmp_path)
    made = keys.new()
    (tmp_path / f"{made.id}.key").chmod(0o644)
    with pytest.raises(KeyringError, match="chmod 600"):
        keys.get(made.id)


def test_master_keys_when_the_file_is_swapped_then_is_refused(tmp_path: Path) -> None:
    keys = MasterKeys("", tmp_path)
    ours, other = keys.new(), keys.new()
    os.replace(tmp_path / f"{other.id}.key", tmp_path / f"{ours.id}.key")
    with pytest.raises(KeyringError, match=other.id):
        keys.get(ours.id)


@pytest.mark.parametrize("text", ["ab", "xy" * 32])
def test_master_keys_when_the_setting_is_malformed_then_does_not_show_it(text: str) -> None:
    with pytest.raises(KeyringError) as refused:
        MasterKeys(text, None)
    assert text not in str(refused.value)
