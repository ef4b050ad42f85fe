"""What the tests of derived memory share: the real vector process, with the real model where it is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from memoryos.settings import EmbeddingSettings
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.memory.derived import Derived, DerivedRecall
from memoryos_server.domain.memory.digest import Digester
from memoryos_server.domain.memory.knowledge import Knowledge
from memoryos_server.domain.memory.model import Verdict
from memoryos_server.domain.memory.segments import Consolidator, Language, Summariser
from memoryos_server.domain.ports import Embedder, Record, RecordFilter, Subject, Turn
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import NoEmbedder
from memoryos_server.tools.embed.opening import open_embedder
from memoryos_server.tools.words import Words
from tests.stores.embedded_fixtures import Keys, subject
from tests.system import CACHE

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
WORDS = Words()
ANALYSIS = Analysis(WORDS.stem, WORDS.fold)
LANGUAGE = Language(WORDS.fold, WORDS.stem, ANALYSIS.text)


@dataclass
class Mind:
    """One user's derived memory on a real store."""

    vectors: EdgeVectors
    engine: RecallEngine
    knowledge: Knowledge
    digester: Digester
    derived: DerivedRecall
    ann: Subject = field(default_factory=subject)
    said: list[Turn] = field(default_factory=list)

    def consolidator(self, summariser: Summariser | None = None) -> Consolidator:
        return Consolidator(self.vectors, self.engine, LANGUAGE, self.knowledge, summariser=summariser)

    def turn(self, content: str, *, role: str = "user", at: datetime | None = None, **more: str) -> Turn:
        """The next turn, a minute after the one before if no time is given."""
        seq = len(self.said) + 1
        when = at or (self.said[-1].timestamp + timedelta(minutes=1) if self.said else START)
        id_ = derived_uuid("default", self.ann.id, f"e{seq}")
        made = Turn(id_, f"e{seq}", more.get("session", "s"), role, more.get("name", ""), content, when, seq)
        self.said.append(made)
        return made

    async def index(self, turns: Sequence[Turn]) -> None:
        await self.vectors.insert(self.ann, await self.engine.index(turns))

    async def hear(self, *contents: str, at: datetime | None = None) -> list[Verdict]:
        """What users say, indexed and digested."""
        turns = [self.turn(content, at=at) for content in contents]
        await self.index(turns)
        return await self.digester.digest(self.ann, turns)

    async def recall(self, query: str, as_of: datetime | None = None) -> Derived:
        return await self.derived.recall(self.ann, query, as_of=as_of)

    async def records(self, kind: str, *, history: bool = False) -> list[Record]:
        return [r async for r in self.vectors.scan(self.ann, RecordFilter(kind), history=history)]


@asynccontextmanager
async def open_mind(home: Path, *, meaning: bool) -> AsyncIterator[Mind]:
    """A mind with an empty store."""
    async with AsyncExitStack() as stack:
        embedder: Embedder = NoEmbedder("a test")
        if meaning:
            embedder = await stack.enter_async_context(open_embedder(EmbeddingSettings(), CACHE / "memoryos"))
        stores = await stack.enter_async_context(EmbeddedStores(home / "data", dict(embedder.names)))
        vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, Keys()))
        engine = RecallEngine(vectors, embedder, ANALYSIS)
        knowledge = Knowledge(vectors, engine, WORDS.fold, ANALYSIS.text)
        digester = Digester(vectors, engine, knowledge, WORDS.fold, WORDS.stem)
        yield Mind(vectors, engine, knowledge, digester, DerivedRecall(vectors, engine, knowledge))
