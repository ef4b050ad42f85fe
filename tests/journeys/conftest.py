from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embeddings import POISON, EmbeddingServer
from tests.system import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A whole system of its own, auth off."""
    with System(tmp_path) as running:
        yield running


@pytest.fixture
def embeddings() -> Iterator[EmbeddingServer]:
    """A provider of embeddings that refuses `POISON`."""
    with EmbeddingServer() as server:
        server.refuses.add(POISON)
        yield server


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A whole system that several tests use with users of their own, auth off."""
    with System(tmp_path_factory.mktemp("shared")) as running:
        yield running
