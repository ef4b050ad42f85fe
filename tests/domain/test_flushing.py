"""Flushes that are held back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memoryos_server.domain.memory.flushing import Flusher
from tests.stores.embedded_fixtures import opened


async def test_flush_when_held_then_begins_only_after_every_hold_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as (_, vectors):
        flusher = Flusher(vectors, 0.01)
        running = asyncio.create_task(flusher.run())
        incarnation = await flusher.covering()
        async with flusher.held():
            async with flusher.held():
                waiting = [asyncio.create_task(flusher.covering()), asyncio.create_task(flusher.now())]
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in waiting)
        async with asyncio.timeout(5):
            assert [await task for task in waiting] == [incarnation, incarnation]
        running.cancel()
        await asyncio.wait([running])


async def test_flush_when_what_is_done_while_it_is_held_fails_then_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "data") as (_, vectors):
        flusher = Flusher(vectors, 0.01)
        with pytest.raises(OSError, match="no space"):
            async with flusher.held():
                raise OSError("no space")
        async with asyncio.timeout(5):
            await flusher.now()
