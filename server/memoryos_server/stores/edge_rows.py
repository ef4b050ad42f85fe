"""Rows: what a search gives of each episode it found, in as few bytes and steps as it takes.

A search finds hundreds of episodes, of which few are shown; the vector process keeps the rows of those it was asked
for, and clients read them as columns. Whole columns travel instead of one thing after another.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memoryos_server.domain.ports import Candidates
from memoryos_server.domain.ports.candidates import MOST_HINTS

_WORDS = 8  # of a speaker's name; of a longer one the rest is cut
_PACKED = struct.Struct(f"<16sQd8sBB6x{MOST_HINTS}f{_WORDS}I")
_ROW = np.dtype(
    [
        ("id", "V16"),
        ("seq", "<i8"),
        ("at", "<f8"),
        ("session", "<u8"),
        ("hinted", "u1"),
        ("words", "u1"),
        ("", "V6"),
        ("hints", "<f4", (MOST_HINTS,)),
        ("name", "<u4", (_WORDS,)),
    ]
)

EMPTY = bytes(_PACKED.size)
"""The row of an episode that is not there."""


def pack_row(memory_id: str, payload: Mapping[str, Any]) -> bytes:
    """The row of an episode: its id, and `q`, `ts`, `n`, `f`, `p` of its payload."""
    hints, words = payload["f"][:MOST_HINTS], payload["p"][:_WORDS]
    # The half of a keyed hash of 16 bytes is enough to tell one user's sessions apart.
    session = bytes.fromhex(payload["n"])[:8]
    return _PACKED.pack(
        UUID(memory_id).bytes,
        payload["q"],
        payload["ts"],
        session,
        len(hints),
        len(words),
        *hints,
        *[0.0] * (MOST_HINTS - len(hints)),
        *words,
        *[0] * (_WORDS - len(words)),
    )


def candidates(rows: bytes, legs: Iterable[tuple[str, bytes, bytes]], named: Collection[int]) -> Candidates:
    """What a search found.

    Args:
        rows: The rows; one of zeros is left out: its episode is gone.
        legs: Name, places in `rows` (uint32), scores (float32).
        named: The keyed numbers of words that may name a speaker.
    """
    table = np.frombuffer(rows, _ROW) if rows else np.zeros(0, _ROW)
    scores = {}
    for leg, places, values in legs:
        scores[leg] = np.full(len(table), np.nan)
        scores[leg][np.frombuffer(places, "<u4")] = np.frombuffer(values, "<f4")
    says: NDArray[np.bool_] = np.zeros(len(table), np.bool_)
    if named:
        given = np.arange(_WORDS) < table["words"][:, None]
        says = np.any(np.isin(table["name"], np.fromiter(named, "<u4")) & given, axis=1)
    found = Candidates(
        np.ascontiguousarray(table["id"]),
        table["seq"],
        table["session"],
        table["at"],
        table["hints"],
        table["hinted"],
        says,
        scores,
    )
    gone = found.ids == np.void(EMPTY[:16])
    return found.taken(~gone) if gone.any() else found
