"""A text that several ask for at once is embedded once, and nobody who leaves takes it from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from memoryos_server.tools.embed.shared import SharedEmbedder


class Counting:
    """Embeds slowly, and remembers what it was asked."""

    names: Mapping[str, int] = {"v": 1}

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.fails = False

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        self.asked.append(tuple(texts))
        await asyncio.sleep(0.01)
        if self.fails:
            raise ValueError("no")
        return [{"v": [float(len(text))]} for text in texts]


async def test_embed_when_asked_at_once_or_again_then_embedded_once() -> None:
    inner = Counting()
    shared = SharedEmbedder(inner)
    answers = await asyncio.gather(*(shared.embed(["cat"]) for _ in range(5)), shared.embed(["a", "b"]))
    assert answers == [[{"v": [3.0]}]] * 5 + [[{"v": [1.0]}, {"v": [1.0]}]]
    assert await shared.embed(["b", "cat", "bird", "cat"]) == [{"v": [1.0]}, {"v": [3.0]}, {"v": [4.0]}, {"v": [3.0]}]
    assert sorted(inner.asked) == [("a", "b"), ("bird",), ("cat",)]


async def test_embed_when_more_texts_than_are_kept_then_the_oldest_is_embedded_again() -> None:
    inner = Counting()
    shared = SharedEmbedder(inner, kept=2)
    assert await shared.embed(["a", "bb", "ccc"]) == [{"v": [1.0]}, {"v": [2.0]}, {"v": [3.0]}]
    assert await shared.embed(["bb"]) == [{"v": [2.0]}]
    assert await shared.embed(["a"]) == [{"v": [1.0]}]
    assert inner.asked == [("a", "bb", "ccc"), ("a",)]


async def test_embed_when_the_first_leaves_then_the_others_are_served() -> None:
    shared = SharedEmbedder(Counting())
    first, second = asyncio.create_task(shared.embed(["cat"])), asyncio.create_task(shared.embed(["cat"]))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == [{"v": [3.0]}]


async def test_embed_when_it_fails_then_everybody_is_told_and_the_next_tries_again() -> None:
    inner = Counting()
    inner.fails = True
    shared = SharedEmbedder(inner)
    told = await asyncio.gather(shared.embed(["cat"]), shared.embed(["cat"]), return_exceptions=True)
    assert [type(error) for error in told] == [ValueError, ValueError]
    inner.fails = False
    assert await shared.embed(["cat"]) == [{"v": [3.0]}]
    assert len(inner.asked) == 2
