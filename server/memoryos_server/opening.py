"""Which family of stores holds the searchable side, by the settings: the embedded engine, or a live Qdrant server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from memoryos.settings import Settings, SettingsError
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.recall.analysis import ANALYSIS_VERSION
from memoryos_server.stores.sealing import Sealers
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import IdentifiedEmbedder

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from memoryos_server.stores.qdrant_link import Place
    from memoryos_server.stores.qdrant_portable import QdrantPortable
    from memoryos_server.stores.vectors_qdrant import QdrantVectors

_T = TypeVar("_T")
_KEY_REFUSED = "the Qdrant server refuses the key: set qdrant.api_key"
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class VectorsUnusable(Exception):
    """The Qdrant server cannot be used as it is; the message says why and what to do."""


@asynccontextmanager
async def open_vectors(
    settings: Settings,
    embedder: IdentifiedEmbedder,
    sealers: Sealers,
    socket: Path | None,
    logger: FilteringBoundLogger,
) -> AsyncIterator[EdgeVectors | QdrantVectors]:
    """The searchable side.

    A server that does not answer does not keep this one from starting: it is looked at with the first call that it
    answers.

    Args:
        settings: All of them.
        embedder: Makes its vectors.
        sealers: Where sealers come from.
        socket: Where the embedded process listens; None with `qdrant.url`.
        logger: Told when the server does not answer.

    Raises:
        SettingsError: A setting cannot be used.
        VectorsUnusable: The server is too old, refuses the key, or has something else under the names.
    """
    if not settings.qdrant.url:
        if socket is None:
            raise ValueError("the embedded engine needs its socket")
        async with EdgeVectors(socket, sealers, analysis=ANALYSIS_VERSION) as edge:
            yield edge
        return
    async with _live(settings, embedder, sealers) as live:
        await _look(live, logger)
        yield live


@asynccontextmanager
async def open_portable(settings: Settings) -> AsyncIterator[QdrantPortable]:
    """Every point of the live Qdrant server, for moves.

    Raises:
        SettingsError: A setting cannot be used.
        VectorsUnusable: The server does not answer, is too old, refuses the key, or has something else under the names.
    """
    place = _place(settings)
    from memoryos_server.stores.qdrant_link import KeyRefused
    from memoryos_server.stores.qdrant_portable import QdrantPortable
    from memoryos_server.stores.qdrant_schema import SchemaDiffers

    async with _with_authorities(
        settings, lambda: QdrantPortable(place, prefix=settings.qdrant.collection_prefix)
    ) as live:
        try:
            await live.look()
        except SchemaDiffers as error:
            raise VectorsUnusable(str(error)) from error
        except KeyRefused as error:
            raise VectorsUnusable(_KEY_REFUSED) from error
        except BackendDown as fault:
            raise VectorsUnusable(f"qdrant.url: {fault.message}") from fault
        yield live


def _place(settings: Settings) -> Place:
    """Where the Qdrant server of the settings is.

    Raises:
        SettingsError: A setting cannot be used.
        VectorsUnusable: Its client is not installed.
    """
    try:
        # Only here: it takes most of a second, and a default install does not have it.
        from memoryos_server.stores.qdrant_link import Place
    except ImportError as error:
        raise VectorsUnusable(
            f"qdrant.url is set, but {error.name or 'qdrant-client'} is not installed: pip install 'memoryos[qdrant]'"
        ) from error
    wanted = settings.qdrant
    if not _PREFIX.fullmatch(wanted.collection_prefix):
        raise SettingsError(
            f"qdrant.collection_prefix: {wanted.collection_prefix!r} is not 1 to 64 letters, digits, '_', '.' or '-'"
        )
    if not wanted.timeout_seconds:
        raise SettingsError("qdrant.timeout_seconds must be more than 0")
    try:
        return Place.of(wanted.url, api_key=wanted.api_key, ca_file=wanted.ca_file)
    except ValueError as error:
        raise SettingsError(f"qdrant.url: {error}") from error


def _with_authorities(settings: Settings, connect: Callable[[], _T]) -> _T:
    try:
        return connect()
    except OSError as error:
        raise SettingsError(f"qdrant.ca_file: cannot read {settings.qdrant.ca_file}: {error.strerror}") from error


def _live(settings: Settings, embedder: IdentifiedEmbedder, sealers: Sealers) -> QdrantVectors:
    place, wanted = _place(settings), settings.qdrant
    from memoryos_server.stores.vectors_qdrant import QdrantVectors

    return _with_authorities(
        settings,
        lambda: QdrantVectors(
            place,
            sealers,
            dict(embedder.names),
            fingerprint=embedder.identity.fingerprint if embedder.names else "",
            prefix=wanted.collection_prefix,
            deadline=wanted.timeout_seconds,
            analysis=ANALYSIS_VERSION,
        ),
    )


async def _look(live: QdrantVectors, logger: FilteringBoundLogger) -> None:
    from memoryos_server.stores.qdrant_link import KeyRefused
    from memoryos_server.stores.qdrant_schema import SchemaDiffers

    try:
        await live.look()
    except SchemaDiffers as error:
        raise VectorsUnusable(str(error)) from error
    except KeyRefused as error:
        raise VectorsUnusable(_KEY_REFUSED) from error
    except BackendDown as fault:
        logger.warning("store", note=f"qdrant.url: {fault.message}; memory is searched once it answers")
