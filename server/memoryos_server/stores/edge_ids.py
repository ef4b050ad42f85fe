"""Point ids as plain numbers.

The engine's binding makes a `uuid.UUID` of each id that it gives, which for the hundreds of hits of a search takes as
long as the search. It looks the class up once, when it first needs one; here it finds a class that gives the number
itself. Should a later version of it not ask like that, ids are UUIDs again, and everything works, only slower.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import qdrant_edge as qe

_NOBODY = "00000000-0000-0000-0000-000000000000"


class _Number:
    def __new__(cls, *parts: Any, **named: Any) -> Any:
        return parts[4]  # of UUID(hex, bytes, bytes_le, fields, int)


def as_numbers() -> None:
    """Has the engine give ids as numbers, in this process, from now on. To be called before it gives any."""
    original = uuid.UUID
    uuid.UUID = _Number  # type: ignore[misc]
    try:
        _ = qe.Point(_NOBODY, {}, {}).id
    except (IndexError, TypeError):
        pass  # it asks differently
    finally:
        uuid.UUID = original  # type: ignore[misc]


def numbers_of(found: Sequence[qe.ScoredPoint | qe.Record]) -> list[int]:
    """The numbers of the ids of what the engine found."""
    ids: list[Any] = [one.id for one in found]
    return ids if not ids or type(ids[0]) is int else [point_id.int for point_id in ids]


def text(point_id: Any) -> str:
    """The usual form of an id as the engine gives it, or of its number."""
    digits = f"{point_id if type(point_id) is int else point_id.int:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
