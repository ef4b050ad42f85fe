"""Any model of the package fastembed, in this process: the extra `fastembed`.

It fetches models by itself, once, into the model directory.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from memoryos_server.tools.embed.identity import IdentifiedEmbedder, Identity, NoEmbedder

NAME = "fastembed"
"""The name of the vectors."""

_MAX_CHARS = 8_000
_AT_ONCE = 8  # a question waits for so many texts of a bulk load


class FastEmbedder:
    """One model in a thread of its own."""

    def __init__(self, model: Any, name: str, dimension: int, thread: ThreadPoolExecutor) -> None:
        self._model = model
        self._name = name
        self._dimension = dimension
        self._thread = thread

    @property
    def names(self) -> Mapping[str, int]:
        """One name."""
        return {NAME: self._dimension}

    @property
    def identity(self) -> Identity:
        """The model's name as fastembed lists it."""
        return Identity(f"{NAME}/{self._name}", "", self._dimension)

    def status(self) -> str:
        """What embeds, in one line."""
        return f"{self._name} ({self._dimension} dimensions), by fastembed"

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """For each text its unit vector."""
        loop = asyncio.get_running_loop()
        vectors: list[Mapping[str, Sequence[float]]] = []
        for start in range(0, len(texts), _AT_ONCE):
            piece = [text[:_MAX_CHARS] for text in texts[start : start + _AT_ONCE]]
            made = await loop.run_in_executor(self._thread, self._vectors, piece)
            vectors += [{NAME: vector} for vector in made]
        return vectors

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        # One text at a time: a batch pads, and what a text's vector is must not depend on its neighbours.
        return [[float(x) for x in next(iter(self._model.embed([text])))] for text in texts]


@asynccontextmanager
async def open_fast(
    name: str, directory: Path, *, threads: int, progress: Callable[[str], None]
) -> AsyncIterator[IdentifiedEmbedder]:
    """The embedder; one that embeds nothing, and says why, where the package or the model cannot be had.

    Raises:
        ValueError: No model is named.
    """
    if not name or name == "minilm":
        raise ValueError("embedding.provider fastembed needs embedding.model, such as BAAI/bge-small-en-v1.5")
    try:
        package: Any = importlib.import_module("fastembed")
    except ImportError:
        yield NoEmbedder("the package fastembed is not installed (pip install 'memoryos[fastembed]')")
        return
    progress(f"loading the embedding model {name} (fetched once)")
    with ThreadPoolExecutor(1, thread_name_prefix="embed") as thread:
        loop = asyncio.get_running_loop()

        def load() -> tuple[Any, int]:
            model = package.TextEmbedding(name, cache_dir=str(directory / "fastembed"), threads=threads)
            return model, len(next(iter(model.embed(["dimension"]))))

        try:
            model, dimension = await loop.run_in_executor(thread, load)
        except Exception as error:  # whatever fetching and loading may raise: recall goes on by words
            yield NoEmbedder(f"fastembed cannot load {name}: {error}")
            return
        yield FastEmbedder(model, name, dimension, thread)
