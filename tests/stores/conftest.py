from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, free_port


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    (tmp_path / "valkey").mkdir()
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Valkey]:
    """One node that owns every slot: it refuses whatever reaches over two, as a real cluster does."""
    (tmp_path / "cluster").mkdir()
    options = ("--cluster-port", str(free_port()), "--bind", "127.0.0.1")
    server = Valkey(tmp_path / "cluster", "--cluster-enabled", "yes", *options)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def master_keys(tmp_path: Path) -> MasterKeys:
    return MasterKeys("", tmp_path / "keys", tmp_path / "valkey")


@pytest.fixture
def connect(valkey: Valkey, master_keys: MasterKeys) -> Connect:
    """Opens one more replica's view of the store."""
    return lambda expected=EXPECTED, **options: RedisStore.connect(valkey.url, master_keys, expected, **options)


@pytest.fixture
async def store(connect: Connect) -> AsyncIterator[RedisStore]:
    async with connect() as opened:
        yield opened
