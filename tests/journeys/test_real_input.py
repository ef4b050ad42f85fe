"""The main job on real input: one English and one Chinese conversation, through the public API, beside plain BM25."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system import System

EVAL = Path(os.environ.get("MEMORYOS_EVAL", "eval"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["locomo_dev", "memorybank_zh_dev"])
def test_recall_when_a_real_conversation_is_loaded_then_above_plain_bm25(shared: System, name: str) -> None:
    from bench.recall.run import measure  # imported late: it reads the set

    path = EVAL / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no evaluation set {name} here; MEMORYOS_EVAL names its folder")
    result = measure(path, shared.grpc, conversations=1)
    print(result)
    assert result.recall_at_10 > result.bm25_recall_at_10
