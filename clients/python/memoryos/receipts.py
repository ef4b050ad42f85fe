"""Which memories went into a chat, why, and at what cost, for both clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.model import short, when
from memoryos.v1 import chat_service_pb2 as pb
from memoryos.v1 import types_pb2

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class ReceiptItem:
    """One memory that went into a chat.

    Attributes:
        id: The memory's id.
        tier: Where it came from, such as `episode`.
        score: Its relevance, 0..1.
        tokens: What it cost in the request, estimated.
        importance: 0..1: rules go in by it, others by importance x score.
        outdated: It said what was no longer believed.
        cut: Only its beginning went in.
        parts: Name -> addend of the score before calibration, the weightiest; empty where the score is no sum.
    """

    id: str
    tier: str
    score: float
    tokens: int
    importance: float
    outdated: bool
    cut: bool
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What memory did for a chat.

    Attributes:
        id: The receipt's id.
        created_at: When the chat was asked, UTC.
        model: The model that was asked for.
        source: What answered: `upstream` or `recall`.
        provider: The name of the provider that answered, "" for the built-in model.
        event_id: The id the turn is remembered under once it has come to its end, "" if it is not to be.
        tokens: What all memories cost together with the frame around them, estimated.
        budget_tokens: What they may have cost at most; 0 for the built-in model.
        degraded: Memory, or a part of it, did not answer in time.
        injected: The memories that went in, in order, without those that were deleted since.
        removed: How many were deleted since.
    """

    id: str
    created_at: datetime
    model: str
    source: str
    provider: str
    event_id: str
    tokens: int
    budget_tokens: int
    degraded: bool
    injected: tuple[ReceiptItem, ...]
    removed: int


class Receipts:
    """`Client.receipts`."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def get(self, receipt_id: str, *, user_id: str | None = None, timeout: float | None = None) -> Receipt:
        """A chat's receipt.

        Args:
            receipt_id: The `receipt_id` of the answer's memory.
            user_id: Whose chat it was; None: the client's user.
            timeout: Seconds; default: the client's.
        """
        request = pb.GetChatReceiptRequest(id=receipt_id)
        return _receipt(self._client.call("GetChatReceipt", request, user_id=user_id, timeout=timeout))


class AsyncReceipts:
    """`AsyncClient.receipts`; as `Receipts`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def get(self, receipt_id: str, *, user_id: str | None = None, timeout: float | None = None) -> Receipt:
        """A chat's receipt."""
        request = pb.GetChatReceiptRequest(id=receipt_id)
        return _receipt(await self._client.call("GetChatReceipt", request, user_id=user_id, timeout=timeout))


def _receipt(message: Message) -> Receipt:
    got = cast(pb.GetChatReceiptResponse, message)
    return Receipt(
        id=got.id,
        created_at=when(got.created_at),
        model=got.model,
        source=got.source,
        provider=got.provider,
        event_id=got.event_id,
        tokens=got.tokens,
        budget_tokens=got.budget_tokens,
        degraded=got.degraded,
        injected=tuple(map(_item, got.injected)),
        removed=got.removed,
    )


def _item(item: pb.ReceiptItem) -> ReceiptItem:
    return ReceiptItem(
        item.id,
        short(types_pb2.Tier, item.tier),
        item.score,
        item.tokens,
        item.importance,
        item.outdated,
        item.cut,
        {part.name: part.value for part in item.parts},
    )
