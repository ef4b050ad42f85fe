"""Rows: what a search gives of each episode it found, in as few bytes and steps as it takes.

A search finds hundreds of episodes, of which few are shown; the vector process keeps the rows of those it was asked
for, and clients turn them into candidates. Whole columns travel instead of one thing after another.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from memoryos_server.domain.ports import Candidate

_HEAD = struct.Struct("<36sQd16sBB")
_COUNTS = slice(_HEAD.size - 2, _HEAD.size)


def pack_row(memory_id: str, payload: Mapping[str, Any]) -> bytes:
    """The row of an episode: its id, and `q`, `ts`, `n`, `f`, `p` of its payload."""
    # A byte counts each: of more hints or of a longer name, the rest is cut.
    hints, words = payload["f"][:255], payload["p"][:255]
    session = bytes.fromhex(payload["n"]) if payload["n"] else bytes(16)
    head = _HEAD.pack(memory_id.encode(), payload["q"], payload["ts"], session, len(hints), len(words))
    return head + struct.pack(f"<{len(hints)}f{len(words)}I", *hints, *words)


def candidates(
    rows: Sequence[bytes], legs: Iterable[tuple[str, bytes, bytes]], named: frozenset[int]
) -> list[Candidate]:
    """What a search found.

    Args:
        rows: The rows; an empty one is left out.
        legs: Name, places in `rows` (uint32), scores (float32).
        named: The keyed numbers of words that may name a speaker.
    """
    scores: list[dict[str, float]] = [{} for _ in rows]
    for leg, places, values in legs:
        for place, score in zip(array.array("I", places), array.array("f", values), strict=True):
            scores[place][leg] = score
    # Rows of one form are unpacked together: there are few forms, and many rows.
    forms: dict[bytes, tuple[list[bytes], list[dict[str, float]]]] = {}
    for row, score_of in zip(rows, scores, strict=True):
        if row:
            form = forms.get(row[_COUNTS])
            if form is None:
                form = forms[row[_COUNTS]] = ([], [])
            form[0].append(row)
            form[1].append(score_of)
    sessions = {bytes(16): ""}
    heard: dict[tuple[int, ...], bool] = {}
    found = []
    for (hints, words), (alike, scores_of) in forms.items():
        end = 6 + hints
        for fields, score_of in zip(_layout(hints, words).iter_unpack(b"".join(alike)), scores_of, strict=True):
            session = sessions.get(fields[3])
            if session is None:
                session = sessions[fields[3]] = fields[3].hex()
            speaker = fields[end:]
            says = heard.get(speaker)
            if says is None:
                says = heard[speaker] = not named.isdisjoint(speaker)
            found.append(Candidate(fields[0].decode(), fields[1], session, fields[2], fields[6:end], says, score_of))
    return found


@lru_cache(maxsize=1024)
def _layout(hints: int, words: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD.format}{hints}f{words}I")
