"""Receipts of chats on the Redis side: one hash a subject and day, sealed, which goes by itself when its time is over.

They hold ids and numbers, never what a memory says. Packed, one takes 80 to 150 bytes, 40 for each memory, and up to
50 for the parts of its score.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgpack

from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.receipts import Receipt, ReceiptItem
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_marks import raw_id, text_id
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import RECEIPT_DAYS
from memoryos_server.stores.sealing import SealBroken, Sealer

log = logging.getLogger(__name__)

_msgpack: Any = msgpack  # ships no types

MOST_OF_A_DAY = 1_000
"""Receipts of a subject's day; further ones are not kept."""

_DAY = 86_400
_FORMAT = 1
_OUTDATED, _CUT = 1, 2

_KEEP = Script(
    "keep_receipts",
    """
    -- KEYS subject record, a day's receipts. ARGV epoch, Unix seconds at which the day goes, most of them, then per receipt:
    -- id, sealed. Of an epoch that is over, nothing is kept.
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
    for i = 4, #ARGV, 2 do
      if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then break end
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
    redis.call('EXPIREAT', KEYS[2], ARGV[2])
    return 1
    """,
)

SCRIPTS = (_KEEP,)


class RedisReceipts:
    """The port `ReceiptStore`.

    Args:
        client: The connection.
        subjects: Who is known.
        days: How long after its end a day's receipts are kept, at most `RECEIPT_DAYS`.
        most: `MOST_OF_A_DAY`.
    """

    def __init__(self, client: Client, subjects: RedisSubjects, *, days: int, most: int = MOST_OF_A_DAY) -> None:
        self._client = client
        self._subjects = subjects
        self._days = min(days, RECEIPT_DAYS)
        self._most = most

    async def keep(self, subject: Subject, receipts: Sequence[Receipt]) -> None:
        """Keeps receipts; again does no harm.

        Raises:
            Stale: The subject's epoch is over.
            BackendDown: The store does not answer.
        """
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        by_day: dict[int, list[Receipt]] = {}
        for receipt in receipts:
            if (day := _day_of(receipt.id)) is not None:
                by_day.setdefault(day, []).append(receipt)
        for day, some in by_day.items():
            args: list[str | bytes | int] = [subject.epoch, (day + 1 + self._days) * _DAY, self._most]
            for receipt in some:
                args += [raw_id(receipt.id), sealer.seal(_place(receipt.id), _packed(receipt))]
            await self._client.script(_KEEP, [scope.record, scope.receipts(day)], args)

    async def find(self, subject: Subject, receipt_id: str) -> Receipt | None:
        """The receipt, or None if the subject has no such one.

        Raises:
            Stale: The subject's epoch is over.
            BackendDown: The store does not answer.
        """
        day = _day_of(receipt_id)
        if day is None:
            return None
        scope = await self._subjects.scope(subject)
        sealed = await self._client.run("HGET", scope.receipts(day), raw_id(receipt_id))
        return None if sealed is None else _opened(await self._subjects.sealer(subject), receipt_id, sealed)

    async def all(self, subject: Subject) -> AsyncIterator[Receipt]:
        """Every receipt of a subject, newest day first.

        Raises:
            Stale: The subject's epoch is over.
            BackendDown: The store does not answer.
        """
        scope = await self._subjects.scope(subject)
        sealer = await self._subjects.sealer(subject)
        for key in scope.all_receipts(int(time.time() // _DAY)):
            # A day has a bounded number of them.
            for raw, sealed in (await self._client.run("HGETALL", key)).items():
                if (receipt := _opened(sealer, text_id(raw), sealed)) is not None:
                    yield receipt


def _opened(sealer: Sealer, receipt_id: str, sealed: bytes) -> Receipt | None:
    try:
        return _unpacked(receipt_id, sealer.open(_place(receipt_id), sealed))
    except SealBroken:
        log.warning("a receipt cannot be opened; it is as if it were not there")
        return None


def _place(receipt_id: str) -> str:
    return f"receipt:{receipt_id}"


def _day_of(receipt_id: str) -> int | None:
    """The day on which a receipt's id was made; None if it is no such id in the form in which ids are given out."""
    try:
        value = uuid.UUID(receipt_id)
    except ValueError:
        return None
    return (value.int >> 80) // (1000 * _DAY) if value.version == 7 and str(value) == receipt_id else None


def _packed(receipt: Receipt) -> bytes:
    # Parts are named by their place among all names: these would be most of a receipt.
    names = list(dict.fromkeys(name for item in receipt.items for name in item.parts))
    places = {name: place for place, name in enumerate(names)}
    value = [
        _FORMAT,
        receipt.model,
        receipt.source,
        receipt.provider,
        receipt.event_id,
        receipt.tokens,
        receipt.budget,
        receipt.degraded,
        names,
        [_row(item, places) for item in receipt.items],
    ]
    packed: bytes = _msgpack.packb(value, use_single_float=True)
    return packed


def _row(item: ReceiptItem, places: Mapping[str, int]) -> list[Any]:
    flags = _OUTDATED * item.outdated + _CUT * item.cut
    parts = [part for name, value in item.parts.items() for part in (places[name], value)]
    return [raw_id(item.id), item.tier, item.score, item.tokens, item.importance, flags, parts]


def _unpacked(receipt_id: str, packed: bytes) -> Receipt:
    _, model, source, provider, event_id, tokens, budget, degraded, names, rows = _msgpack.unpackb(packed)
    return Receipt(
        receipt_id,
        model,
        source,
        provider,
        event_id,
        tokens,
        budget,
        degraded,
        tuple(_item(names, *row) for row in rows),
    )


def _item(
    names: Sequence[str],
    raw: bytes,
    tier: str,
    score: float,
    tokens: int,
    importance: float,
    flags: int,
    parts: Sequence[Any],
) -> ReceiptItem:
    return ReceiptItem(
        text_id(raw),
        tier,
        round(score, 6),
        tokens,
        round(importance, 6),
        bool(flags & _OUTDATED),
        bool(flags & _CUT),
        {names[place]: round(value, 6) for place, value in zip(parts[::2], parts[1::2], strict=True)},
    )
