"""The services on memory."""

from __future__ import annotations

from memoryos.settings import Settings
from memoryos_server.domain.admin.keys import KeyService
from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.admin.usage import UsageService
from memoryos_server.domain.admin.users import UserService
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.manage.service import SegmentService
from memoryos_server.domain.memories.extract import Extraction
from memoryos_server.domain.memories.extracting import Extracting
from memoryos_server.domain.memories.sameness import Sameness
from memoryos_server.domain.memories.service import MemoriesService
from memoryos_server.domain.memory import heat
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.memory.extraction import extract_memories
from memoryos_server.domain.memory.said import SaidService
from memoryos_server.domain.privacy.service import PrivacyService
from memoryos_server.domain.security.consents import ConsentService
from memoryos_server.rpc.admin_servicer import AdminServicer
from memoryos_server.rpc.chat_servicer import ChatServicer
from memoryos_server.rpc.consent_servicer import ConsentServicer
from memoryos_server.rpc.memories_servicer import MemoriesServicer
from memoryos_server.rpc.memory_servicer import MemoryServicer
from memoryos_server.rpc.privacy_servicer import PrivacyServicer
from memoryos_server.rpc.queue_servicer import QueueServicer
from memoryos_server.rpc.segment_servicer import SegmentServicer
from memoryos_server.rpc.usage_servicer import UsageServicer
from memoryos_server.wiring.memory import Memory

_FORGOT = "forgot"
"""The kind of message that says that something of a person, named by a keyed hash, was taken back."""


def servicers(
    settings: Settings,
    memory: Memory,
    chat: ChatService,
    letters: DeadLetters,
    meter: Meter,
    receipts: Receipts | None,
    keys: KeyService,
    privacy: PrivacyService,
) -> dict[str, object]:
    """The services on memory by their full names."""
    redis, vectors, pipeline, words = memory.redis, memory.vectors, memory.pipeline, memory.words
    consents = memory.consents

    def forget(tenant_id: str, user_id: str) -> None:
        chat.forget(tenant_id, user_id)
        memory.knowledge.forget_user(tenant_id, user_id)
        if redis.shared:
            redis.changes.tell(_FORGOT, redis.subjects.lookup(tenant_id, user_id))

    def heard(whose: str) -> None:
        chat.forget_if(lambda tenant_id, user_id: redis.subjects.lookup(tenant_id, user_id) == whose)
        memory.knowledge.forget_all()  # kept for a moment only, and this is rare

    redis.changes.listen(_FORGOT, heard, lambda: chat.forget_if(lambda *_: True))

    said = SaidService(
        redis.subjects,
        redis.turns,
        vectors,
        pipeline,
        memory.knowledge,
        rebuild=memory.consolidator,
        forget=forget,
    )
    memories = MemoriesService(
        consents, vectors, pipeline, memory.finder, memory.keeper, forget=forget, shield=memory.shield
    )
    extraction = Extraction(
        lambda messages, said_at: extract_memories(messages, said_at=said_at, fold=words.fold),
        memory.upstream,
        settings.memory.consolidation_model,
    )
    extracting = Extracting(
        consents,
        vectors,
        pipeline,
        memory.finder,
        extraction,
        Sameness(words.fold, words.stem),
        consents=consents,
        shield=memory.shield,
    )
    segments = SegmentService(
        consents, vectors, redis.heat, pipeline, initial=heat.initial, decayed=heat.decayed, shield=memory.shield
    )
    return {
        "memoryos.v1.ChatService": ChatServicer(chat, receipts),
        "memoryos.v1.SegmentService": SegmentServicer(segments),
        "memoryos.v1.MemoryService": MemoryServicer(memory.service, said),
        "memoryos.v1.PrivacyService": PrivacyServicer(privacy),
        "memoryos.v1.QueueService": QueueServicer(letters),
        "memoryos.v1.MemoriesService": MemoriesServicer(memories, extracting),
        "memoryos.v1.AdminService": AdminServicer(keys, UserService(redis.keys, redis.subjects)),
        "memoryos.v1.ConsentService": ConsentServicer(ConsentService(redis.subjects, redis.consents)),
        "memoryos.v1.UsageService": UsageServicer(UsageService(redis.usage, meter)),
    }
