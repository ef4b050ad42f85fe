"""The family of the searchable side, chosen by the settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from memoryos.settings import SettingsError, load
from memoryos_server import app
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.opening import VectorsUnusable, open_vectors
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.stores.vectors_qdrant import QdrantVectors
from tests.stores.embedded_fixtures import Keys
from tests.stores.qdrant_fixtures import QdrantServer, fresh_prefix
from tests.system import free_port


class NoModel:
    """An embedder without a model; nothing is embedded here."""

    names: dict[str, int] = {}  # noqa: RUF012  # read only


async def opened(tmp_path: Path, **qdrant: str) -> Any:
    env = {f"MEMORYOS_QDRANT__{name.upper()}": value for name, value in qdrant.items()}
    settings = load(env).settings
    logger = structlog.get_logger()
    async with open_vectors(settings, NoModel(), Keys(), tmp_path / "vectors.sock", logger) as vectors:  # type: ignore[arg-type]
        return vectors


async def test_vectors_when_no_url_is_set_then_they_are_embedded_and_else_live(
    qdrant: QdrantServer, tmp_path: Path
) -> None:
    assert isinstance(await opened(tmp_path), EdgeVectors)
    live = await opened(tmp_path, url=qdrant.url, collection_prefix=fresh_prefix())
    assert isinstance(live, QdrantVectors)


@pytest.mark.parametrize(
    ("qdrant", "says"),
    [
        ({"url": "localhost:6334"}, "qdrant.url: it is no URL"),
        ({"url": "http://x", "collection_prefix": "a/b"}, "qdrant.collection_prefix"),
        ({"url": "http://x", "timeout_seconds": "0"}, "qdrant.timeout_seconds"),
        ({"url": "https://x", "ca_file": "/nowhere.pem"}, "qdrant.ca_file: cannot read /nowhere.pem"),
        ({"url": "http://x", "ca_file": "/nowhere.pem"}, "https URL only"),
    ],
)
async def test_vectors_when_a_setting_is_wrong_then_the_error_names_it(
    tmp_path: Path, qdrant: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        await opened(tmp_path, **qdrant)


async def test_vectors_when_the_client_is_not_installed_then_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("memoryos_server.stores.") and "qdrant" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(VectorsUnusable, match=r"pip install 'memoryos\[qdrant\]'"):
        await opened(tmp_path, url="http://127.0.0.1:1")


async def test_stores_when_one_is_lost_while_they_are_used_then_that_is_no_failed_start(tmp_path: Path) -> None:
    env = {"MEMORYOS_DATA_DIR": str(tmp_path / "data"), "MEMORYOS_SECURITY__KEY_DIR": str(tmp_path / "keys")}
    lost = BackendDown("The store is not reachable")
    with pytest.raises(BackendDown) as told:
        async with app.open_operator(load(env).settings):
            raise lost
    assert told.value is lost


async def test_stores_when_a_live_one_is_not_there_then_the_start_fails_and_names_it(tmp_path: Path) -> None:
    port = free_port()
    env = {
        "MEMORYOS_DATA_DIR": str(tmp_path / "data"),
        "MEMORYOS_REDIS__URL": f"redis://127.0.0.1:{port}",
        "MEMORYOS_SECURITY__MASTER_KEY": "ab" * 32,
    }
    with pytest.raises(app.StartError, match=f"127.0.0.1:{port}"):
        async with app.open_operator(load(env).settings):
            pytest.fail("it was opened")
