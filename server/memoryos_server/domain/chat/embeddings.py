"""Embeddings for everybody who speaks OpenAI's dialect: from the model that memory itself searches with, or from a provider."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memoryos_server.domain.core.faults import Invalid, Upstream, unknown_model
from memoryos_server.domain.core.text import check_text, estimate_tokens
from memoryos_server.domain.ports import Asked, Embedder, Llm

MAX_INPUTS = 2048
EMBEDDINGS = "/embeddings"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of texts.

    Attributes:
        model: The model's name.
        vectors: One for each text, as JSON: an array of numbers, or a string of base64.
        tokens: The tokens of the texts, estimated unless a provider says.
    """

    model: str
    vectors: Sequence[str]
    tokens: int


class EmbeddingService:
    """Makes vectors of texts.

    Args:
        embedder: The model; if it has several vectors, the first is given.
        model: What it is called.
        status: What it reads, or why there is none; for errors.
        llm: The providers, who are asked for all other models; None: there are none.
    """

    def __init__(self, embedder: Embedder, model: str, status: str, llm: Llm | None = None) -> None:
        self._embedder = embedder
        self._model = model
        self._status = status
        self._llm = llm

    async def embed(self, model: str, input_json: str, *, packed: bool, dimensions: int | None) -> Embedded:
        """The texts' vectors, in order; unit vectors of the model of memory, of a provider's what it gives.

        Args:
            model: The model that is asked for.
            input_json: A text, or an array of 1..2048 texts, as JSON.
            packed: Whether to give base64 of 32-bit floats, little endian.
            dimensions: How many numbers a vector is to have, or None.

        Raises:
            Invalid: Nobody serves the model, a text is no text, or the model cannot read one.
            BackendDown: The model has too much to do, or its provider does not answer.
            UpstreamRejected: A provider refused the request.
            Upstream: A provider failed.
            DeadlineExceeded: A provider took too long.
        """
        if model != self._model and self._llm is not None and await self._llm.serves(model):
            return await self._of_provider(self._llm, model, input_json, packed=packed, dimensions=dimensions)
        name, size = next(iter(self._embedder.names.items()), ("", 0))
        if model != self._model or not name:
            raise unknown_model(model, f"; here embeds: {self._status}")
        if dimensions is not None and dimensions != size:
            raise Invalid(f"dimensions must be left out, or {size}: this model has no others", param="dimensions")
        texts = _texts(input_json)
        found = await self._embedder.embed(texts)
        for number, vectors in enumerate(found):
            if name not in vectors:
                raise Invalid("The model can tell nothing of this text", details=self._status, param=f"input[{number}]")
        # In a thread: a large batch takes long to write, and chats are streaming meanwhile.
        shown = await asyncio.to_thread(lambda: [_shown(vectors[name], packed) for vectors in found])
        return Embedded(self._model, shown, sum(estimate_tokens(text) for text in texts))

    async def _of_provider(
        self, llm: Llm, model: str, input_json: str, *, packed: bool, dimensions: int | None
    ) -> Embedded:
        """As `embed`, from a provider; the input goes out as it came, tokens of its vocabulary too."""
        more = f',"dimensions":{dimensions}' if dimensions is not None else ""
        form = "base64" if packed else "float"
        body = f'{{"model":{json.dumps(model)},"input":{input_json},"encoding_format":"{form}"{more}}}'
        answer = await llm.complete(Asked(model, body, path=EMBEDDINGS))
        try:
            return await asyncio.to_thread(_read, answer.body, model)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Upstream("The provider's answer holds no embeddings") from None


def _read(body: bytes, model: str) -> Embedded:
    value = json.loads(body)
    found = sorted(value["data"], key=lambda one: int(one["index"]))
    vectors = [json.dumps(one["embedding"]) for one in found]
    tokens = (value.get("usage") or {}).get("prompt_tokens")
    return Embedded(str(value.get("model") or model), vectors, tokens if isinstance(tokens, int) else 0)


def _texts(input_json: str) -> list[str]:
    try:
        value = json.loads(input_json)
    except (ValueError, RecursionError):
        raise Invalid("input must be JSON: a text or an array of texts", param="input") from None
    texts = value if isinstance(value, list) else [value]
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise Invalid(f"input must hold 1..{MAX_INPUTS} texts, not {len(texts)}", param="input")
    for number, text in enumerate(texts):
        if isinstance(text, (int, list)):
            raise Invalid("input must be text: tokens of another model's vocabulary cannot be read", param="input")
        if not isinstance(text, str):
            raise Invalid("input must be a text or an array of texts", param="input")
        check_text(text, f"input[{number}]")
    return [text.encode("utf-8", "replace").decode() for text in texts]


def _shown(vector: Sequence[float], packed: bool) -> str:
    numbers = np.asarray(vector, dtype="<f4")
    if packed:
        return json.dumps(base64.b64encode(numbers.tobytes()).decode())
    return f"[{','.join(np.format_float_positional(number, trim='0') for number in numbers)}]"
