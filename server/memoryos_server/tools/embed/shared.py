"""One embedding for all who ask for the same text at the same time.

A question is embedded for episodes and for what is derived from them, at once: that is one text, not two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from memoryos_server.domain.ports import Embedder

_Vectors = Mapping[str, Sequence[float]]


class SharedEmbedder:
    """An embedder that embeds a single text once for everybody who waits for it.

    Args:
        embedder: Does the work.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._under_way: dict[str, asyncio.Task[list[_Vectors]]] = {}

    @property
    def names(self) -> Mapping[str, int]:
        """Vector name -> dimension."""
        return self._embedder.names

    async def embed(self, texts: Sequence[str]) -> list[_Vectors]:
        """For each text, vector name -> unit vector. Who leaves does not take it from the others."""
        if len(texts) != 1:
            return await self._embedder.embed(texts)
        (text,) = texts
        task = self._under_way.get(text)
        if task is None:
            task = self._under_way[text] = asyncio.create_task(self._embedder.embed(texts))
            task.add_done_callback(lambda done: self._done(text, done))
        return list(await asyncio.shield(task))

    def _done(self, text: str, task: asyncio.Task[list[_Vectors]]) -> None:
        del self._under_way[text]
        if not task.cancelled():
            task.exception()  # they who wait are told; nobody may be waiting any more
