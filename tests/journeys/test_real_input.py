"""The main job on real input: one English and one Chinese conversation, through the public API, beside plain BM25."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from bench.recall.__main__ import measure
from bench.recall.sets import load
from bench.recall.systems import over_grpc
from tests.system import System

EVAL = Path(os.environ.get("EVAL", "eval"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["locomo_dev", "memorybank_zh_dev"])
async def test_recall_when_a_real_conversation_is_loaded_then_above_plain_bm25(shared: System, name: str) -> None:
    if not (EVAL / f"{name}.json").is_file():
        pytest.skip(f"no evaluation set {name} in {EVAL}; EVAL names the folder")
    async with over_grpc(shared.grpc, "") as memory:
        result = await measure(memory, load(EVAL, name, 1), run=f"{uuid.uuid4()}-")
    print(f"{name}: ours {result.ours.line()} | plain BM25 {result.plain.line()}")
    assert result.ours.at10 > result.plain.at10
