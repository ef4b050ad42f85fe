"""Segments whose id was free when they were accepted and is somebody else's by the time they are written.

Two people may bring a segment with one id at the same moment, each before the other's is there. Both were told that theirs is
kept, under that id. So the later one is kept under its alias and shown under the id, as where it is taken in another tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memoryos_server.domain.core.ids import SHOWN_ID, alias
from memoryos_server.domain.ports import Record, Subject, Vectors

_KIND = "segment"
_AT_ONCE = 200


async def displaced(vectors: Vectors, subject: Subject, put: Sequence[Record]) -> dict[str, str]:
    """Which segments cannot be kept under their ids, each with the id to keep it under.

    Raises:
        BackendDown: The searchable side does not answer.
    """
    ids = [record.id for record in put if record.kind == _KIND]
    moved: dict[str, str] = {}
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        mine = {one.id for one in await vectors.records(subject, some) if one.kind == _KIND}
        for name in some:
            if name not in mine and await vectors.owner(name) is not None:
                moved[name] = alias(subject.id, name)
    return moved


def under(moved: Mapping[str, str], record: Record) -> Record:
    """A record under the id to keep it under, shown under its own."""
    if record.id not in moved:
        return record
    data = {SHOWN_ID: record.id, **record.data}
    return replace(record, id=moved[record.id], data=data)
