"""One embedding for all who ask for the same text.

A question is embedded for episodes and for what is derived from them, at once: that is one text, not two. A turn is
embedded to be found, then again to be compared with what was said before, and again to find its topic: within minutes,
and with the same vector each time. So the latest vectors are kept, under keyed hashes of their texts.
"""

from __future__ import annotations

import array
import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from memoryos_server.domain.ports import Embedder

KEPT = 2048
"""How many texts' vectors are kept, some 1.5 KB each."""

_Vectors = Mapping[str, Sequence[float]]


class SharedEmbedder:
    """An embedder that embeds a text once for everybody who asks for it at about the same time.

    Args:
        embedder: Does the work.
        kept: How many texts' vectors are kept.
    """

    def __init__(self, embedder: Embedder, kept: int = KEPT) -> None:
        self._embedder = embedder
        self._most = kept
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, Mapping[str, array.array[float]]] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[list[_Vectors]]] = {}

    @property
    def names(self) -> Mapping[str, int]:
        """Vector name -> dimension."""
        return self._embedder.names

    async def embed(self, texts: Sequence[str]) -> list[_Vectors]:
        """For each text, vector name -> unit vector. Who leaves does not take it from the others."""
        keys = [self._hash(text) for text in texts]
        found = {key: vectors for key in keys if (vectors := self._recall(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if len(missing) == 1:
            ((key, text),) = missing.items()
            task = self._under_way.get(key)
            if task is None:
                task = self._under_way[key] = asyncio.create_task(self._embed([key], [text]))
                task.add_done_callback(lambda done: self._done(key, done))
            (found[key],) = await asyncio.shield(task)
        elif missing:
            found |= zip(missing, await self._embed(list(missing), list(missing.values())), strict=True)
        return [found[key] for key in keys]

    def forget_all(self) -> None:
        """Drops the vectors of all texts: whose they are is not known."""
        self._kept.clear()

    async def _embed(self, keys: Sequence[bytes], texts: Sequence[str]) -> list[_Vectors]:
        made = await self._embedder.embed(texts)
        for key, vectors in zip(keys, made, strict=True):
            # As the stores keep them: the same text has the same vector, however it was come by.
            self._kept[key] = {name: array.array("f", vector) for name, vector in vectors.items()}
        answer = [_lists(self._kept[key]) for key in keys]
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return answer

    def _recall(self, key: bytes) -> _Vectors | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return _lists(kept)

    def _hash(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()

    def _done(self, key: bytes, task: asyncio.Task[list[_Vectors]]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # they who wait are told; nobody may be waiting any more


def _lists(vectors: Mapping[str, array.array[float]]) -> _Vectors:
    return {name: vector.tolist() for name, vector in vectors.items()}
