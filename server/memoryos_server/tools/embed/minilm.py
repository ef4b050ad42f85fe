"""The local embedder: all-MiniLM-L6-v2, int8, on the processor.

Texts run through the model one at a time. On a processor a batch saves nothing (32 tokens: 1.86 ms alone, 1.79 ms in a
batch of 16), while it would make a text's int8 vector depend on its neighbours in the batch, maybe another user's. So a
text always gives the same vector. Concurrent calls share one thread in turns, so that a question waits for a few
texts of a bulk load and not for all of them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.tools.embed.identity import Identity
from memoryos_server.tools.embed.weights import DIMENSION, RECIPE, WEIGHTS_SHA256, WeightsError, intact

NAME = "minilm"
"""The name of the vectors."""

MAX_TOKENS = 256
"""What the model reads of a text; the rest says nothing to it."""

_MAX_CHARS = 4_000  # 256 tokens of ordinary text; spares the tokenizer the rest
_TURN_CHARS = 400  # one stay in the thread, some 8 ms: what a question may have to wait
_TURN_TEXTS = 8
_FOREIGN = 0.2
MOST_WAITING = 2048
"""Calls that wait at once; beyond it the model is as good as away: questions go by words, what is to be indexed waits."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call of `embed` and how far it is."""

    texts: Sequence[str]
    todo: deque[int]
    done: asyncio.Future[None]
    wanted: int
    vectors: dict[int, list[float]] = field(default_factory=dict)


class MiniLm:
    """all-MiniLM-L6-v2 in a thread of its own. Used as an async context manager."""

    def __init__(self, model: Path, tokenizer: Path, *, threads: int = 1) -> None:
        """Loads the model (some 0.4 s, off the loop if you call it there).

        Args:
            model: The file that `prepare` gave.
            tokenizer: The tokenizer's file.
            threads: Threads of one run.
        """
        # Imported here: 0.3 s that a process without a model need not spend. onnxruntime ships no types.
        import numpy as np
        from tokenizers import Tokenizer

        onnxruntime: Any = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would burn a core between texts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._array = np.array
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._waiting: deque[_Call] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Opens for calls."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends calls under way as cancelled and the thread with them."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        for call in self._waiting:
            call.done.cancel()
        self._waiting.clear()
        # The thread is in the middle of at most one turn, some 25 ms.
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def names(self) -> Mapping[str, int]:
        """One name."""
        return {NAME: DIMENSION}

    @property
    def identity(self) -> Identity:
        """The published weights and the way they are run; the same on every machine."""
        return Identity(f"all-MiniLM-L6-v2/int8-{RECIPE}", WEIGHTS_SHA256, DIMENSION)

    def status(self) -> str:
        """What embeds, in one line."""
        return "all-MiniLM-L6-v2 (int8, local), English; other scripts go by words"

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """For each text its unit vector of 384; left out where the text is mostly in another script than Latin.

        Raises:
            BackendDown: Too many calls wait.
        """
        todo = deque(i for i, text in enumerate(texts) if readable(text))
        if not todo:
            return [{} for _ in texts]
        if len(self._waiting) >= MOST_WAITING:
            raise BackendDown("The embedding model has too much to do")
        loop = asyncio.get_running_loop()
        call = _Call(texts, todo, loop.create_future(), len(todo))
        self._waiting.append(call)
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        await call.done
        return [{NAME: call.vectors[i]} if i in call.vectors else {} for i in range(len(texts))]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            turn = self._turn()
            try:
                vectors = await loop.run_in_executor(self._thread, self._vectors, [call.texts[i] for call, i in turn])
            except asyncio.CancelledError:
                for call, _ in turn:
                    call.done.cancel()
                raise
            except Exception as error:
                for call in {id(call): call for call, _ in turn}.values():
                    if not call.done.done():
                        call.done.set_exception(error)
                    call.todo.clear()
            else:
                for (call, i), vector in zip(turn, vectors, strict=True):
                    call.vectors[i] = vector
                    if len(call.vectors) == call.wanted and not call.done.done():
                        call.done.set_result(None)

    def _turn(self) -> list[tuple[_Call, int]]:
        """The next texts: one of each call in turn, until the stay is full."""
        turn: list[tuple[_Call, int]] = []
        chars = 0
        while self._waiting and len(turn) < _TURN_TEXTS and chars < _TURN_CHARS:
            call = self._waiting.popleft()
            if call.done.done():  # its caller left
                continue
            i = call.todo.popleft()
            turn.append((call, i))
            chars += min(len(call.texts[i]), _MAX_CHARS)
            if call.todo:
                self._waiting.append(call)
        return turn

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = []
        for text in texts:
            ids = self._tokenizer.encode(text[:_MAX_CHARS]).ids
            (vector,) = self._session.run(None, {"ids": self._array([ids])})[0].tolist()
            vectors.append(vector)
        return vectors


def readable(text: str) -> bool:
    """Whether the model can tell anything of a text: it has letters or digits, at most a fifth of them beyond Latin."""
    signs = [c for c in text[:_MAX_CHARS] if c.isalnum()]
    return bool(signs) and sum(1 for c in signs if ord(c) >= 0x250) <= _FOREIGN * len(signs)


async def prepare(directory: Path, progress: Callable[[str], None]) -> Path:
    """The model's file in `directory`, built if it is not there or damaged (some 4 s, once, in a process of its own).

    Args:
        directory: Where model files are kept.
        progress: Gets a line when something takes seconds.

    Raises:
        WeightsError: There is no model and none can be built.
    """
    target = directory / f"{NAME}-{RECIPE}.onnx"
    if await asyncio.to_thread(intact, target):
        return target
    progress("building the local embedding model (once, some seconds)")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never a module of the directory we happen to be in
        "-m",
        "memoryos_server.tools.embed.graph",
        str(target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            # Not `process.kill()`, which may take the exit status away from the loop that waits for it.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode or not await asyncio.to_thread(intact, target):
        lines = errors.decode(errors="replace").strip().splitlines()
        raise WeightsError(lines[-1] if lines else f"building the model ended with {process.returncode}")
    progress("the local embedding model is built")
    return target
