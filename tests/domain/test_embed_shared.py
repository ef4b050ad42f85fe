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


async def test_embed_when_asked_at_once_then_embedded_once_and_again_later() -> None:
    inner = Counting()
    shared = SharedEmbedder(inner)
    answers = await asyncio.gather(*(shared.embed(["cat"]) for _ in range(5)), shared.embed(["a", "b"]))
    assert answers == [[{"v": [3.0]}]] * 5 + [[{"v": [1.0]}, {"v": [1.0]}]]
    await shared.embed(["cat"])
    assert sorted(inner.asked) == [("a", "b"), ("cat",), ("cat",)]


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
