"""Receipts: which memories went into a chat, why, and at what cost. Written behind the answer, which waits for nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from memoryos_server.domain.chat.model import MemoryReport, RecalledItem
from memoryos_server.domain.core.behind import WrittenBehind
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import Fault, NotFound, Stale
from memoryos_server.domain.core.ids import kept_ids, uuid7
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.ports import Record, Subject, Subjects, Turn
from memoryos_server.domain.ports.receipts import Receipt, ReceiptItem, ReceiptStore

MOST_WAITING = 2_000
"""Receipts that wait to be written; while there are so many, chats have none."""

MOST_PARTS = 8
"""Of a score's addends the weightiest are kept."""

_RECENT = 100

_log = Sparing(logging.getLogger(__name__))


class Memories(Protocol):
    """The searchable side, as far as receipts know it."""

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist."""

    async def records(self, subject: Subject, ids: Sequence[str]) -> list[Record]:
        """Those of the subject's records that exist."""


class Recent(Protocol):
    """Short-term memory, as far as receipts know it."""

    async def recent(self, subject: Subject, limit: int) -> list[Turn]:
        """The newest turns."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A receipt as it is shown.

    Attributes:
        receipt: With those memories that still exist.
        removed: How many others there were.
    """

    receipt: Receipt
    removed: int


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat whose receipt is not written yet: making one takes a moment that no chat is to wait for."""

    tenant_id: str
    user_id: str
    model: str
    budget: int
    report: MemoryReport
    subject_id: str


class Receipts(WrittenBehind):
    """Keeps receipts and shows them. An async context manager that writes what waits when it is left.

    Args:
        subjects: Who is known.
        store: Where receipts are kept.
        memories: Which memories exist.
        recent: Which were just said.
        interval: Seconds between writes; what was chatted within is lost when the process dies.
        most: `MOST_WAITING`.
    """

    def __init__(
        self,
        subjects: Subjects,
        store: ReceiptStore,
        memories: Memories,
        recent: Recent,
        *,
        interval: float = 0.5,
        most: int = MOST_WAITING,
    ) -> None:
        super().__init__("receipts", interval)
        self._subjects = subjects
        self._store = store
        self._memories = memories
        self._recent = recent
        self._most = most
        self._waiting: dict[str, _Chat] = {}

    def new_id(self) -> str:
        """The id of a receipt that will be kept; "" while too many wait."""
        return uuid7() if len(self._waiting) < self._most else ""

    def keep(
        self, tenant_id: str, user_id: str, model: str, budget: int, report: MemoryReport, subject_id: str = ""
    ) -> None:
        """Keeps a chat's receipt under the id that its report has; returns at once.

        With `subject_id` it is that person's, and of nobody who came back under the same name.
        """
        self._waiting[report.receipt_id] = _Chat(tenant_id, user_id, model, budget, report, subject_id)

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """Drops those that wait, of every tenant and user for whom `whose` is true."""
        for name in [name for name, chat in self._waiting.items() if whose(chat.tenant_id, chat.user_id)]:
            del self._waiting[name]

    async def show(self, who: Caller, user_id: str, receipt_id: str) -> Shown:
        """A receipt, without the memories that were deleted since.

        Raises:
            NotFound: There is no such receipt, or no longer, or it is somebody else's.
            Forbidden: The caller may not act for the user.
            BackendDown: A store does not answer.
        """
        owner = who.owner(user_id)
        waiting = self._waiting.get(receipt_id)
        if waiting is not None and (waiting.tenant_id, waiting.user_id) == (who.tenant_id, owner):
            await self.write()
        subject = await self._subjects.find(who.tenant_id, owner)
        receipt = await self._found(subject, receipt_id) if subject else None
        if subject is None or receipt is None:
            raise NotFound("There is no such receipt", param="id")
        there = await self._existing(subject, [item.id for item in receipt.items])
        items = tuple(item for item in receipt.items if item.id in there)
        return Shown(replace(receipt, items=items), len(receipt.items) - len(items))

    async def write(self) -> None:
        """As `WrittenBehind.write`."""
        async with self._writing:
            whose: dict[tuple[str, str], list[_Chat]] = {}
            for chat in self._waiting.values():
                whose.setdefault((chat.tenant_id, chat.user_id), []).append(chat)
            for chats in whose.values():
                try:
                    await self._write(chats)
                except Fault:
                    raise
                except Exception:  # one that cannot be written must not keep all others waiting
                    for chat in chats:
                        await self._write_or_drop(chat)
                for chat in chats:
                    self._waiting.pop(chat.report.receipt_id, None)

    async def _write(self, chats: Sequence[_Chat]) -> None:
        """Writes some of one user."""
        whose = chats[0].tenant_id, chats[0].user_id
        known = await self._subjects.find(*whose)
        present = known.id if known is not None else ""
        # Of one who was erased since the chat began nothing is to be kept.
        receipts = [_receipt(chat) for chat in chats if chat.subject_id in ("", present)]
        if receipts:
            with contextlib.suppress(Stale):  # erased meanwhile
                await self._store.keep(known or await self._subjects.open(*whose), receipts)

    async def _write_or_drop(self, chat: _Chat) -> None:
        try:
            await self._write([chat])
        except Fault:
            raise
        except Exception as error:
            _log.error("a receipt is lost, it cannot be written: %s", type(error).__name__)

    async def _found(self, subject: Subject, receipt_id: str) -> Receipt | None:
        try:
            return await self._store.find(subject, receipt_id)
        except Stale:
            return None

    async def _existing(self, subject: Subject, ids: Sequence[str]) -> set[str]:
        if not ids:
            return set()
        kept = {one: kept_ids(subject.id, one) for one in ids}
        there = {turn.id for turn in await self._memories.get(subject, ids)}
        asked = [one for group in kept.values() for one in group]
        there |= {record.id for record in await self._memories.records(subject, asked)}
        if any(there.isdisjoint(group) for group in kept.values()):
            # What was said a moment ago may not be searchable yet.
            there |= {turn.id for turn in await self._recent.recent(subject, _RECENT)}
        return {one for one, group in kept.items() if not there.isdisjoint(group)}


def _receipt(chat: _Chat) -> Receipt:
    report = chat.report
    return Receipt(
        report.receipt_id,
        chat.model,
        report.source,
        report.provider,
        report.event_id,
        report.tokens,
        chat.budget,
        report.degraded,
        tuple(map(_item, report.injected)),
    )


def _item(item: RecalledItem) -> ReceiptItem:
    weighty = sorted(item.parts.items(), key=lambda part: -abs(part[1]))[:MOST_PARTS]
    return ReceiptItem(
        item.id, item.tier, item.score, item.tokens, item.importance, item.outdated, item.cut, dict(weighty)
    )
