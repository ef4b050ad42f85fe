"""Exports and erasures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from memoryos.settings import Settings
from memoryos_server.domain.admin.keys import Keeper, KeyService
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.memory.profile import profile
from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.audit import AuditTrail
from memoryos_server.domain.ports.privacy import UserData
from memoryos_server.domain.privacy.data import Episodes, Keys, Nothing, Records, Trail
from memoryos_server.domain.privacy.erasing import SETTLE_SECONDS, Eraser, Untended
from memoryos_server.domain.privacy.service import PrivacyService
from memoryos_server.stores.compaction import Compaction
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_user_data import Consents, Recent, Sessions, Work
from memoryos_server.stores.redis_user_data import Heat as UserHeat
from memoryos_server.stores.redis_user_data import Receipts as UserReceipts
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.wiring.memory import Memory

_ERASED = "erased"
"""The kind of message that says that a person, named by a keyed hash, was erased."""

_ERASURES_ACTOR = "erasure"
"""Who audit events name for keys that end with their user."""


async def open_privacy(
    stack: AsyncExitStack,
    settings: Settings,
    memory: Memory,
    chat: ChatService,
    receipts: Receipts | None,
    keys: KeyService,
    trail: AuditTrail,
    flush: Callable[[], Awaitable[None]],
) -> PrivacyService:
    """Exports and erasures; starts what completes erasures, on a stack."""
    redis, vectors = memory.redis, memory.vectors
    lookup = redis.erasures.lookup

    def heard(whose: str) -> None:
        def is_meant(tenant_id: str, user_id: str) -> bool:
            return lookup(tenant_id, user_id) == whose

        chat.forget_erased(is_meant)
        if receipts is not None:
            receipts.forget_if(is_meant)
        forget_unnamed()

    def forget_unnamed() -> None:
        # Kept under no name; it is made again, and erasures are rare.
        memory.knowledge.forget_all()
        memory.embedder.forget_all()
        memory.engine.forget_all()

    def missed() -> None:
        chat.forget_if(lambda *_: True)
        forget_unnamed()

    def forget(whose: str) -> None:
        heard(whose)
        if redis.shared:
            redis.changes.tell(_ERASED, whose)

    redis.changes.listen(_ERASED, heard, missed if redis.shared else None)

    async def about(subject: Subject) -> str:
        return profile(await memory.knowledge.current(subject))

    api_keys = _users_keys(redis, keys)
    data: tuple[UserData, ...] = (
        Episodes(vectors),
        Records(vectors, "segments", "segment"),
        Records(vectors, "knowledge", "fact"),
        Records(vectors, "memories", "memory"),
        Nothing("graph"),
        Nothing("multimodal"),
        Nothing("faq"),
        Consents(redis.client, redis.consents),
        Trail(trail),
        api_keys,
        Nothing("connectors"),
        Nothing("jobs"),
        Records(vectors, "denials", "denial"),
        Recent(redis.client, redis.turns),
        Sessions(redis.client, redis.turns),
        Work(redis.client, redis.queue),
        UserReceipts(redis.client, redis.receipts),
        UserHeat(redis.client, redis.heat),
    )
    eraser = Eraser(
        redis.erasures,
        data,
        Compaction(None if settings.redis.url else redis.client, vectors if isinstance(vectors, EdgeVectors) else None),
        redis.audit,
        forget=forget,
        settle_seconds=0.0 if isinstance(vectors, EdgeVectors) else SETTLE_SECONDS,
    )
    await stack.enter_async_context(eraser)
    ends = api_keys.end_everywhere
    level = memory.pipeline.level
    return PrivacyService(redis.subjects, data, redis.erasures, eraser, redis.audit, about, ends, level, flush)


def untended_privacy(redis: RedisStore, keys: KeyService) -> PrivacyService:
    """Erasures where no server runs: begun, and completed by the next start. It can export nothing."""

    async def nobody(subject: Subject) -> str:
        return ""

    async def nothing() -> None:
        """Nothing is recorded late."""

    ends = _users_keys(redis, keys).end_everywhere
    return PrivacyService(redis.subjects, (), redis.erasures, Untended(), redis.audit, nobody, ends, Level(), nothing)


def _users_keys(redis: RedisStore, keys: KeyService) -> Keys:
    async def revoke(key_id: str) -> object:
        return await keys.revoke(key_id, Keeper(_ERASURES_ACTOR, every=True))

    return Keys(redis.keys, revoke, redis.erasures.lookup)
