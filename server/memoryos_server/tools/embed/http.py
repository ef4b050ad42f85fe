"""An embedder over HTTP, in OpenAI's dialect (`POST /embeddings`): a provider's, or a server of one's own.

A provider that is away or out of breath is a store that is down: what is to be indexed waits, questions go by words. One that
does not answer at all is asked in the background whether it is back, and nobody else waits for it meanwhile. A text that the
provider refuses is that text's failure and no one else's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson

from memoryos_server.domain.core.faults import BackendDown, Fault, UpstreamRejected
from memoryos_server.tools.embed.dimensions import Dimensions
from memoryos_server.tools.embed.identity import IdentifiedEmbedder, Identity, NoEmbedder

log = logging.getLogger(__name__)

NAME = "http"
"""The name of the vectors."""

BATCH = 64
_TIMEOUT_SECONDS = 30.0
_QUERY_SECONDS = 2.0
_CONNECT_SECONDS = 5.0
_ASKED_AGAIN_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
"""How long after each try a provider that did not answer is asked again; the last over and over."""
_OUT_OF_BREATH = frozenset({401, 403, 408, 409, 425, 429})


class HttpOptions(Protocol):
    """Where the provider is; the settings of embedding have this form."""

    @property
    def model(self) -> str:
        """The model as the provider calls it."""

    @property
    def base_url(self) -> str:
        """Such as `https://api.openai.com/v1`."""

    @property
    def api_key(self) -> str:
        """The key, or ""."""

    @property
    def dimension(self) -> int:
        """How long its vectors are; 0: asked of the provider at the start, else as it said before."""

    @property
    def max_chars(self) -> int:
        """What is sent of a text."""


class _Silent(BackendDown):
    """Nothing came."""

    def __init__(self) -> None:
        super().__init__("The embedding provider is not reachable")


class HttpEmbedder:
    """One model of one provider."""

    def __init__(self, session: aiohttp.ClientSession, options: HttpOptions, dimension: int) -> None:
        self._session = session
        self._url = options.base_url.rstrip("/") + "/embeddings"
        self._model = options.model
        self._max_chars = options.max_chars
        self._dimension = dimension
        self._back: asyncio.Task[None] | None = None

    @property
    def names(self) -> Mapping[str, int]:
        """One name."""
        return {NAME: self._dimension}

    @property
    def identity(self) -> Identity:
        """The model's name; where it runs makes no difference."""
        return Identity(f"{NAME}/{self._model}", "", self._dimension)

    def status(self) -> str:
        """What embeds, in one line."""
        return f"{self._model} ({self._dimension} dimensions) at {self._url}"

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """For each text its unit vector; of long texts the beginning speaks for all.

        Raises:
            BackendDown: The provider does not answer, or has no room now.
            UpstreamRejected: It refuses one of the texts; the others may come again without it.
        """
        if self._back is not None and not self._back.done():
            raise _Silent
        vectors: list[Mapping[str, Sequence[float]]] = []
        seconds = _QUERY_SECONDS if len(texts) == 1 else _TIMEOUT_SECONDS
        for start in range(0, len(texts), BATCH):
            try:
                made = await self.ask(texts[start : start + BATCH], seconds)
            except _Silent:
                if self._back is None or self._back.done():
                    self._back = asyncio.create_task(self._until_back(), name="embedding-provider-back")
                raise
            if any(len(vector) != self._dimension for vector in made):
                raise BackendDown(
                    f"The embedding provider answers with another dimension than {self._dimension}; start again, or"
                    " set embedding.dimension to its own"
                )
            vectors += [{NAME: vector} for vector in made]
        return vectors

    async def aclose(self) -> None:
        """Asks no more whether the provider is back."""
        if self._back is not None:
            self._back.cancel()
            await asyncio.wait([self._back])

    async def _until_back(self) -> None:
        for tries in itertools.count():
            await asyncio.sleep(_ASKED_AGAIN_SECONDS[min(tries, len(_ASKED_AGAIN_SECONDS) - 1)])
            try:
                await self.ask(["back"], _QUERY_SECONDS)
            except _Silent:
                continue
            except Fault:
                return  # whatever it says, it answers
            return

    async def ask(self, texts: Sequence[str], seconds: float) -> list[list[float]]:
        """The provider's vectors of at most `BATCH` texts, made unit length.

        Raises:
            BackendDown, UpstreamRejected: As `embed`.
        """
        body = orjson.dumps(
            {
                "model": self._model,
                "input": [text[: self._max_chars].encode("utf-8", "replace").decode() for text in texts],
                "encoding_format": "float",
            }
        )
        try:
            async with self._session.post(
                self._url, data=body, timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
            ) as answer:
                raw = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _Silent from error
        if status in _OUT_OF_BREATH or status >= 500:
            raise BackendDown(f"The embedding provider answers with status {status}")
        if status != 200:
            raise UpstreamRejected(f"The embedding provider refuses the text with status {status}", status=status)
        try:
            rows = sorted(orjson.loads(raw)["data"], key=lambda row: row["index"])
            vectors = [_unit(row["embedding"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise BackendDown("The embedding provider's answer is no list of vectors") from error
        if len(vectors) != len(texts):
            raise BackendDown("The embedding provider answered for another number of texts")
        return vectors


def _unit(values: Any) -> list[float]:
    vector = [float(value) for value in values]
    length = math.sqrt(sum(value * value for value in vector))
    if not math.isfinite(length) or length == 0:
        raise ValueError("no direction")
    return [value / length for value in vector]


@asynccontextmanager
async def open_http(options: HttpOptions, directory: Path) -> AsyncIterator[IdentifiedEmbedder]:
    """The provider's embedder; one that embeds nothing, and says why, where its dimension cannot be learned.

    Args:
        options: Where the provider is.
        directory: Where its dimension is kept for a start while it is away.

    Raises:
        ValueError: A setting is missing; the message names it.
    """
    for name in ("base_url", "model"):
        if not getattr(options, name):
            raise ValueError(f"embedding.provider http needs embedding.{name} (MEMORYOS_EMBEDDING__{name.upper()})")
    headers = {"Content-Type": "application/json", "User-Agent": "memoryos"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    async with aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            dimension = options.dimension or await _learned(session, options, directory)
        except Fault as fault:
            yield NoEmbedder(
                f"{fault.message} ({options.base_url}), and how long its vectors are is not known yet; start again once it"
                " answers, or set embedding.dimension (MEMORYOS_EMBEDDING__DIMENSION) to start without asking it"
            )
            return
        embedder = HttpEmbedder(session, options, dimension)
        try:
            yield embedder
        finally:
            await embedder.aclose()


async def _learned(session: aiohttp.ClientSession, options: HttpOptions, directory: Path) -> int:
    """The dimension as the provider says it, or said it before if it is away.

    Raises:
        BackendDown: It is away, and said nothing before.
        UpstreamRejected: It refuses. What it said before does not count then: it would refuse each text as well.
    """
    dimensions = Dimensions(directory, NAME, options.base_url, options.model)
    known = await asyncio.to_thread(dimensions.known)
    # A start need not wait for long to hear what is known.
    seconds = _QUERY_SECONDS if known else _TIMEOUT_SECONDS
    try:
        (vector,) = await HttpEmbedder(session, options, 0).ask(["dimension"], seconds)
    except BackendDown as fault:
        if not known:
            raise
        log.warning("%s; the dimension of %s is taken as %d, as it said before", fault.message, options.model, known)
        return known
    if len(vector) != known:
        await asyncio.to_thread(dimensions.keep, len(vector))
    return len(vector)
