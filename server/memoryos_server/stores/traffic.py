"""What every family of vectors does on the way: points in pieces, rows opened, ids looked at. Must not know of engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from memoryos_server.domain.ports import Record, Turn
from memoryos_server.stores.points import Point, open_record, open_turn, pieces
from memoryos_server.stores.sealing import SealBroken, Sealer

_log = logging.getLogger(__name__)

# An engine does one request at a time: small ones let others in between, and no frame comes near its limit.
_POINTS_PER_REQUEST = 128
_BYTES_PER_REQUEST = 4 * 1024 * 1024
# A term costs a keyed hash, 1.5 us: more than this many would hold up everybody else and are hashed in a thread.
_TERMS_AT_ONCE = 3_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A point that lacks something.

    Attributes:
        subject_id: Whose.
        kind: The kind of record, "" for an episode.
        id: The memory id.
        version: The record's version, 0 for an episode.
        sealed: Its payload.
    """

    subject_id: str
    kind: str
    id: str
    version: int
    sealed: str


async def in_pieces(points: Iterable[Point], terms: int) -> Iterable[list[Mapping[str, Any]]]:
    """Points in pieces; many terms are hashed in a thread, so that nobody waits for them."""
    made = pieces(points, _POINTS_PER_REQUEST, _BYTES_PER_REQUEST)
    return made if terms <= _TERMS_AT_ONCE else await asyncio.to_thread(list, made)


def opened_turns(texts: Iterable[tuple[str, str]], sealer: Sealer) -> Iterator[Turn]:
    """The turns of ids and payloads `t`."""
    for memory_id, text in texts:
        try:
            yield open_turn(memory_id, text, sealer)
        except SealBroken as error:
            # One damaged turn must not hide the others; the log says which it is.
            _log.error("memory %s cannot be opened: %s", memory_id, error)


def opened_records(rows: Iterable[tuple[str, str, str, str | None]], sealer: Sealer) -> Iterator[Record]:
    """The records of ids, kinds, payloads `t` and, where it is wanted, `h`."""
    for memory_id, kind, text, history in rows:
        try:
            yield open_record(memory_id, kind, text, history, sealer)
        except SealBroken as error:
            _log.error("memory %s cannot be opened: %s", memory_id, error)


def known_ids(ids: Iterable[str]) -> list[str]:
    """Those that can be memory ids, each once: what is no UUID does not exist."""
    return [memory_id for memory_id in dict.fromkeys(ids) if is_uuid(memory_id)]


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in its usual form."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def stored(memory_id: str, corpus: str, version: int, sealed: str) -> Stored:
    """A point that lacks something, of the corpus that the engine names."""
    subject_id, _, kind = corpus.partition("/")
    return Stored(subject_id, kind, memory_id, version, sealed)


def open_stored(stored: Stored, sealer: Sealer) -> Turn | Record:
    """What a point holds; a record without its history.

    Raises:
        SealBroken: It does not open with the subject's key.
    """
    if not stored.kind:
        return open_turn(stored.id, stored.sealed, sealer)
    return open_record(stored.id, stored.kind, stored.sealed, None, sealer)
