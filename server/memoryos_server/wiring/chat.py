"""Chat on memory, and its receipts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from memoryos.settings import Settings, SettingsError
from memoryos_server.domain.admin.budgets import Budgets
from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.tokens import ModelNames, Tokens
from memoryos_server.domain.memories.notes import ChatNotes
from memoryos_server.domain.memory.counts import Counts
from memoryos_server.stores.scope import RECEIPT_DAYS
from memoryos_server.wiring.memory import Memory


async def open_receipts(stack: AsyncExitStack, settings: Settings, memory: Memory) -> Receipts | None:
    """Receipts of chats; None: there are to be none.

    Raises:
        SettingsError: They are to be kept for too long.
    """
    days = settings.retention.receipts_days
    if days > RECEIPT_DAYS:
        raise SettingsError(f"retention.receipts_days: at most {RECEIPT_DAYS}")
    if days <= 0:
        return None
    redis = memory.redis
    return await stack.enter_async_context(Receipts(redis.subjects, redis.receipts, memory.vectors, redis.turns))


def open_chat(
    stack: AsyncExitStack,
    settings: Settings,
    memory: Memory,
    counts: Counts,
    spent: Callable[[str, Tokens], None],
    meter: Meter,
    budgets: Budgets,
    receipts: Receipts | None,
) -> ChatService:
    """Chat on memory; what it still has to remember when the stack closes is remembered first.

    Args:
        stack: What it closes with.
        settings: What to wait for and spend.
        memory: The users' memory.
        counts: Counts turns.
        spent: Counts the tokens of a model.
        meter: Keeps who spent them.
        budgets: Holds keys to what they may spend.
        receipts: Keeps which memories went into chats, or None.
    """
    names = ModelNames()

    def count(who: Caller, model: str, tokens: Tokens) -> None:
        name = names.of(model)
        spent(name, tokens)
        budgets.spend(who, tokens)
        if settings.retention.usage_days > 0:
            meter.count(who.tenant_id, who.key_id, name, tokens)

    async def known_as(tenant_id: str, user_id: str) -> str:
        subject = await memory.redis.subjects.find(tenant_id, user_id)
        return subject.id if subject is not None else ""

    notes = ChatNotes(
        memory.redis.subjects, memory.vectors, memory.pipeline, memory.finder, memory.keeper, memory.consents
    )
    breakers = (memory.redis.client.breaker, memory.vectors.breaker)
    chat = ChatService(
        memory.service,
        memory.upstream,
        settings.memory,
        notes=notes,
        receipts=receipts,
        remembered=counts.remembered,
        spent=count,
        admit=budgets.admit,
        # An open one is not waited for anyway.
        doubtful=lambda: any(breaker.is_doubtful and not breaker.is_open for breaker in breakers),
        keeps=lambda: not memory.redis.client.breaker.is_open,
        away=lambda: all(breaker.is_open for breaker in breakers),
        may_use=memory.consents.allowed,
        known_as=known_as,
        shield=memory.shield,
    )
    stack.push_async_callback(chat.drain, settings.server.grace_seconds)
    return chat
