"""Memory with its background work: what every room beside it builds on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from memoryos.settings import Settings, SettingsError, UpstreamSettings
from memoryos.tracing import Spans
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.memory import heat
from memoryos_server.domain.memory.backlog import Backlog
from memoryos_server.domain.memory.counts import Counts
from memoryos_server.domain.memory.derived import DerivedRecall
from memoryos_server.domain.memory.digest import Digester
from memoryos_server.domain.memory.gist_llm import LlmSummariser
from memoryos_server.domain.memory.knowledge import KEPT_SECONDS, SHARED_SECONDS, Knowledge
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.reindexing import Reindexer, Upkeep
from memoryos_server.domain.memory.retraction import Retraction, Sweeper
from memoryos_server.domain.memory.segments import Consolidator, Language
from memoryos_server.domain.memory.service import MemoryService
from memoryos_server.domain.ports import Subject, Vectors
from memoryos_server.domain.ports.shield import Shield
from memoryos_server.domain.privacy.data import Searchable
from memoryos_server.domain.recall.analysis import ANALYSIS_VERSION, Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.domain.security.consents import ConsentedSubjects
from memoryos_server.stores.breaker import Breaker
from memoryos_server.stores.redis import RedisStore
from memoryos_server.tools.embed.identity import IdentifiedEmbedder
from memoryos_server.tools.embed.shared import SharedEmbedder
from memoryos_server.tools.llm.catalog import Catalog
from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.reloading import Reloading, catalog_of
from memoryos_server.tools.llm.table import TableError
from memoryos_server.tools.words import Words

_LEARNT = "learnt"
"""The kind of message that says that a subject's facts changed."""


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


def _tell(redis: RedisStore, kind: str, subject: Subject) -> None:
    if redis.shared:
        redis.changes.tell(kind, subject.id)
