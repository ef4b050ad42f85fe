"""How the use cases are put together from open stores.

`app` opens what the process is made of, and this module makes memory, chat and the rooms beside them of it, each in a
function of its own. Nothing else constructs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from memoryos.settings import Settings, SettingsError, UpstreamSettings
from memoryos.tracing import Spans
from memoryos_server.domain.admin.budgets import Budgets
from memoryos_server.domain.admin.keys import Keeper, KeyService
from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.admin.usage import UsageService
from memoryos_server.domain.admin.users import UserService
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import ModelNames, Tokens
from memoryos_server.domain.manage.service import SegmentService
from memoryos_server.domain.memories.extract import Extraction
from memoryos_server.domain.memories.extracting import Extracting
from memoryos_server.domain.memories.notes import ChatNotes
from memoryos_server.domain.memories.sameness import Sameness
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.memories.service import MemoriesService
from memoryos_server.domain.memory import heat
from memoryos_server.domain.memory.backlog import Backlog
from memoryos_server.domain.memory.counts import Counts
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.memory.derived import DerivedRecall
from memoryos_server.domain.memory.digest import Digester
from memoryos_server.domain.memory.extraction import extract_memories
from memoryos_server.domain.memory.gist_llm import LlmSummariser
from memoryos_server.domain.memory.knowledge import KEPT_SECONDS, SHARED_SECONDS, Knowledge
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.profile import profile
from memoryos_server.domain.memory.reindexing import Reindexer, Upkeep
from memoryos_server.domain.memory.retraction import Retraction, Sweeper
from memoryos_server.domain.memory.said import SaidService
from memoryos_server.domain.memory.segments import Consolidator, Language
from memoryos_server.domain.memory.service import MemoryService
from memoryos_server.domain.ports import Subject, Vectors
from memoryos_server.domain.ports.audit import AuditTrail
from memoryos_server.domain.ports.privacy import UserData
from memoryos_server.domain.ports.shield import Shield
from memoryos_server.domain.privacy.data import Episodes, Keys, Nothing, Records, Searchable, Trail
from memoryos_server.domain.privacy.erasing import SETTLE_SECONDS, Eraser, Untended
from memoryos_server.domain.privacy.service import PrivacyService
from memoryos_server.domain.recall.analysis import ANALYSIS_VERSION, Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.domain.security.consents import ConsentedSubjects, ConsentService
from memoryos_server.domain.shield.shield import ContentShield, Suspicion
from memoryos_server.rpc.admin_servicer import AdminServicer
from memoryos_server.rpc.chat_servicer import ChatServicer
from memoryos_server.rpc.consent_servicer import ConsentServicer
from memoryos_server.rpc.memories_servicer import MemoriesServicer
from memoryos_server.rpc.memory_servicer import MemoryServicer
from memoryos_server.rpc.privacy_servicer import PrivacyServicer
from memoryos_server.rpc.queue_servicer import QueueServicer
from memoryos_server.rpc.segment_servicer import SegmentServicer
from memoryos_server.rpc.usage_servicer import UsageServicer
from memoryos_server.stores.breaker import Breaker
from memoryos_server.stores.compaction import Compaction
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_user_data import Consents, Recent, Sessions, Work
from memoryos_server.stores.redis_user_data import Heat as UserHeat
from memoryos_server.stores.redis_user_data import Receipts as UserReceipts
from memoryos_server.stores.scope import RECEIPT_DAYS
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import IdentifiedEmbedder
from memoryos_server.tools.embed.shared import SharedEmbedder
from memoryos_server.tools.llm.catalog import Catalog
from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.reloading import Reloading, catalog_of
from memoryos_server.tools.llm.table import TableError
from memoryos_server.tools.words import Words

_LEARNT = "learnt"
"""The kind of message that says that a subject's facts changed."""

_ERASED = "erased"
"""The kind of message that says that a person, named by a keyed hash, was erased."""

_ERASURES_ACTOR = "erasure"
"""Who audit events name for keys that end with their user."""

_FORGOT = "forgot"
"""The kind of message that says that something of a person, named by a keyed hash, was taken back."""


class SearchStore(Vectors, Searchable, Upkeep, Protocol):
    """The searchable side, whichever family holds it."""

    @property
    def breaker(self) -> Breaker:
        """Has calls fail at once while it does not answer."""

    def on_reconnect(self, follower: Callable[[], None]) -> None:
        """Has `follower` called whenever the store may be another than before."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory, running: what every room beside it builds on.

    Attributes:
        redis: The ledger's side.
        vectors: The searchable side.
        words: Folds and stems.
        upstream: The providers of models, or None.
        knowledge: What is believed.
        shield: Looks at texts, and cleans what is remembered.
        consents: Who may be remembered and recalled; whoever opens a subject here may keep something of it.
        consolidator: Makes segments.
        pipeline: The way of turns and changes.
        keeper: Counts accesses.
        finder: Finds typed memories.
        embedder: Embeds texts, and keeps the latest vectors.
        engine: Finds what answers a question, and keeps what the latest say.
        service: Adds and retrieves.
    """

    redis: RedisStore
    vectors: SearchStore
    words: Words
    upstream: Gateway | None
    knowledge: Knowledge
    shield: Shield
    consents: ConsentedSubjects
    consolidator: Consolidator
    pipeline: Pipeline
    keeper: heat.HeatKeeper
    finder: Finder
    embedder: SharedEmbedder
    engine: RecallEngine
    service: MemoryService


async def _providers(
    stack: AsyncExitStack, options: UpstreamSettings, answered: Callable[[str, float], None], spans: Spans
) -> Gateway | None:
    """Those of the settings and of their file; None: there are none."""
    if not options.base_url and not options.providers_file:
        return None
    gateway = Gateway(Catalog(), answered=answered, spans=spans)
    reloading = Reloading(options, gateway.change)
    try:
        gateway.change(catalog_of(options))
    except TableError as error:
        raise SettingsError(str(error)) from None
    await stack.enter_async_context(gateway)
    await stack.enter_async_context(reloading)
    return gateway


def open_shield(
    settings: Settings,
    counted: Callable[[str], None],
    record: Callable[[AuditEvent], None],
    suspected: Callable[[str, str, str], None] = lambda address, key_id, kind: None,
) -> ContentShield:
    """What looks at texts.

    Args:
        settings: What it looks for.
        counted: Told of each pattern that was found in a call.
        record: Has an event written soon.
        suspected: Told of each call in which any was found: the client's address, the key's id, and the kind, `injection`.
            A fault that it raises refuses the call.

    Raises:
        SettingsError: A kind to redact is unknown.
    """

    def noted(what: Suspicion) -> None:
        who = what.caller
        for name in what.ids:
            counted(name)
        record(
            AuditEvent(
                id=uuid7(),
                timestamp=utc_now(),
                event_type="injection.suspected",
                tenant_id=who.tenant_id,
                user_id=what.owner or who.named_user or who.user_id or "",
                resource=what.where,
                action="Shield",
                outcome="denied" if what.blocked else "ok",
                actor=who.key_id,
                address=who.address,
                request_id=who.request_id,
                details=",".join(what.ids),
            )
        )
        suspected(who.address, who.key_id, "injection")  # last: it may refuse the call

    options = settings.shield
    try:
        return ContentShield(options.injection, options.redact, upstream=options.redact_upstream, suspected=noted)
    except ValueError as error:
        raise SettingsError(f"shield.redact (MEMORYOS_SHIELD__REDACT): {error}") from None


async def open_memory(
    stack: AsyncExitStack,
    settings: Settings,
    redis: RedisStore,
    vectors: SearchStore,
    embedder: IdentifiedEmbedder,
    *,
    counts: Counts,
    answered: Callable[[str, float], None],
    spans: Spans,
    progress: Callable[[str], None],
    shield: Shield,
) -> Memory:
    """Starts memory, with its background work, on a stack."""
    words = Words()
    analysis = Analysis(words.stem, words.fold)
    shared = SharedEmbedder(embedder)
    engine = RecallEngine(vectors, shared, analysis, away=lambda: vectors.breaker.is_open)
    upstream = await _providers(stack, settings.upstream, answered, spans)
    learnt = partial(_tell, redis, _LEARNT)
    # With the embedded engine nobody else writes; what other servers learn of one that they share, they tell, but it may be late.
    kept = SHARED_SECONDS if settings.redis.url else KEPT_SECONDS
    knowledge = Knowledge(vectors, engine, words.fold, analysis.text, counts, learnt, kept_seconds=kept)
    redis.changes.listen(_LEARNT, knowledge.forget_id, knowledge.forget_all)
    model = settings.memory.consolidation_model
    consolidator = Consolidator(
        vectors,
        engine,
        Language(words.fold, words.stem, analysis.text),
        knowledge,
        summariser=LlmSummariser(upstream, model, analysis.text, words.fold) if upstream and model else None,
        # The ledger's, which is shorter where the short-term memory ends earlier: both must say that a talk is over.
        idle=timedelta(seconds=redis.queue.idle_seconds),
        counts=counts,
    )
    consents = ConsentedSubjects(redis.subjects, redis.consents, required=settings.consent.required)
    pipeline = Pipeline(
        redis.turns,
        redis.queue,
        vectors,
        engine,
        analysis.text,
        redis.heat,
        digest=Digester(vectors, engine, knowledge, words.fold, words.stem),
        consolidation=consolidator,
        mode=settings.memory.pipeline,
        flush_interval=settings.memory.flush_interval_seconds,
        counts=counts,
        shared=redis.shared,
        sweep=Sweeper(vectors, Retraction(vectors, knowledge, consolidator), engine).sweep if redis.shared else None,
        backlog=Backlog(
            redis.queue,
            most=settings.memory.max_backlog,
            most_of_tenant=settings.memory.max_tenant_backlog,
            counts=counts,
        ),
        doubtful=lambda: redis.client.breaker.is_doubtful or vectors.breaker.is_doubtful,
        down=lambda: redis.client.breaker.is_open or vectors.breaker.is_open,
        consents=consents,
    )
    reindexer = Reindexer(
        vectors,
        redis.subjects,
        engine,
        analysis=ANALYSIS_VERSION,
        embeds=bool(embedder.names),
        progress=progress,
        counts=counts,
    )

    def reconnected() -> None:
        pipeline.restarted()
        reindexer.again()

    vectors.on_reconnect(reconnected)
    await stack.enter_async_context(pipeline)
    await stack.enter_async_context(reindexer)
    keeper = await stack.enter_async_context(heat.HeatKeeper(redis.heat))
    derived = DerivedRecall(vectors, engine, knowledge)
    service = MemoryService(
        consents,
        redis.turns,
        vectors,
        pipeline,
        engine,
        derived=derived,
        heat=keeper,
        consents=consents,
        shield=shield,
    )
    finder = Finder(vectors, engine)
    return Memory(
        redis,
        vectors,
        words,
        upstream,
        knowledge,
        shield,
        consents,
        consolidator,
        pipeline,
        keeper,
        finder,
        shared,
        engine,
        service,
    )


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


async def open_privacy(
    stack: AsyncExitStack,
    settings: Settings,
    memory: Memory,
    chat: ChatService,
    receipts: Receipts | None,
    keys: KeyService,
    trail: AuditTrail,
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
        forget=forget,
        settle_seconds=0.0 if isinstance(vectors, EdgeVectors) else SETTLE_SECONDS,
    )
    await stack.enter_async_context(eraser)
    return PrivacyService(redis.subjects, data, redis.erasures, eraser, redis.audit, about, api_keys.end_everywhere)


def untended_privacy(redis: RedisStore, keys: KeyService) -> PrivacyService:
    """Erasures where no server runs: begun, and completed by the next start. It can export nothing."""

    async def nobody(subject: Subject) -> str:
        return ""

    ends = _users_keys(redis, keys).end_everywhere
    return PrivacyService(redis.subjects, (), redis.erasures, Untended(), redis.audit, nobody, ends)


def _users_keys(redis: RedisStore, keys: KeyService) -> Keys:
    async def revoke(key_id: str) -> object:
        return await keys.revoke(key_id, Keeper(_ERASURES_ACTOR, every=True))

    return Keys(redis.keys, revoke, redis.erasures.lookup)


def _tell(redis: RedisStore, kind: str, subject: Subject) -> None:
    if redis.shared:
        redis.changes.tell(kind, subject.id)


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
