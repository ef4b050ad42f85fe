"""How a change of memory is stored while it is open."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from memoryos_server.domain.ports import Change, HeatState, Record
from memoryos_server.stores.redis_marks import raw_id
from memoryos_server.stores.sealing import SealBroken, Sealer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FORM = 1
_LARGE = 1 << 20
_ID = 16


def seal_change(sealer: Sealer, nonce: bytes, change: Change) -> bytes:
    """A change as it is stored under its nonce."""
    return sealer.seal(_record_id(nonce), dump_change(change))


def open_change(sealer: Sealer, nonce: bytes, sealed: bytes) -> Change:
    """The change that `seal_change` took.

    Raises:
        SealBroken: It does not open with the subject's present key, or is of another form.
    """
    try:
        return load_change(sealer.open(_record_id(nonce), sealed))
    except (ValueError, TypeError, KeyError):
        raise SealBroken("a change is not of the form in which changes are stored") from None


async def opened_change(sealer: Sealer, nonce: bytes, sealed: bytes) -> Change:
    """As `open_change`; nobody waits for a large one to be opened, which an import may be.

    Raises:
        SealBroken: As `open_change`.
    """
    if len(sealed) > _LARGE:
        return await asyncio.to_thread(open_change, sealer, nonce, sealed)
    return open_change(sealer, nonce, sealed)


def without_gone(change: Change, gone: bytes) -> Change:
    """A change without records that were removed since: their ids, 16 bytes each."""
    ids = {gone[at : at + _ID] for at in range(0, len(gone), _ID)}
    put = tuple(record for record in change.put if raw_id(record.id) not in ids)
    heat = {name: state for name, state in change.heat.items() if raw_id(name) not in ids}
    return replace(change, put=put, heat=heat)


def dump_change(change: Change) -> bytes:
    """A change as bytes."""
    return orjson.dumps(
        {
            "form": _FORM,
            "put": [_dump_record(record) for record in change.put],
            "remove": change.remove,
            "heat": {
                name: [state.heat, state.count, _micros(state.last_accessed)] for name, state in change.heat.items()
            },
            "embed": change.embed,
            "events": dict(change.events),
        }
    )


def load_change(raw: bytes) -> Change:
    """The change that `dump_change` took.

    Raises:
        ValueError: It is of another form.
    """
    stored = orjson.loads(raw)
    if not isinstance(stored, dict) or stored.get("form") != _FORM:
        raise ValueError("not a change of this form")
    return Change(
        put=tuple(_load_record(record) for record in stored["put"]),
        remove=tuple(stored["remove"]),
        heat={name: HeatState(heat, count, _time(at)) for name, (heat, count, at) in stored["heat"].items()},
        embed=stored["embed"],
        events={name: (event_id, session_id) for name, (event_id, session_id) in stored["events"].items()},
    )


def _dump_record(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "version": record.version,
        "text": record.text,
        "type": record.type,
        "created_at": _micros(record.created_at),
        "updated_at": _micros(record.updated_at),
        "since": _micros(record.since),
        "until": None if record.until is None else _micros(record.until),
        "tags": record.tags,
        "sources": record.sources,
        "session_id": record.session_id,
        "data": dict(record.data),
        "history": [dict(version) for version in record.history],
    }


def _load_record(stored: dict[str, Any]) -> Record:
    times = {name: _time(stored[name]) for name in ("created_at", "updated_at", "since")}
    until = stored["until"]
    lists = {name: tuple(stored[name]) for name in ("tags", "sources", "history")}
    return Record(**{**stored, **times, **lists, "until": None if until is None else _time(until)})


def _record_id(nonce: bytes) -> str:
    return f"change:{nonce.hex()}"


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def _time(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND
