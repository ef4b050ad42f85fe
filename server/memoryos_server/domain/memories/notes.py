"""Typed memories as chats get them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from memoryos_server.domain.memories.model import CONTEXT, FACT, KIND, RULE, Found, Note, Noted, TypedMemory, memory_of
from memoryos_server.domain.memories.neighbours import Changes, Touch
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.ports import RecordFilter, Subject, Subjects, Vectors
from memoryos_server.domain.ports.consents import EVERYBODY, Consents

MOST_RULES = 500
RELEVANT = 20
"""The most memories besides rules."""


class ChatNotes:
    """A user's typed memories for chats.

    Args:
        subjects: Who is known.
        vectors: The searchable side.
        changes: Tells whether something is missing.
        finder: Finds memories by meaning and words.
        touch: Counts accesses, or None.
        consents: Who may be recalled.
    """

    def __init__(
        self,
        subjects: Subjects,
        vectors: Vectors,
        changes: Changes,
        finder: Finder,
        touch: Touch | None = None,
        consents: Consents = EVERYBODY,
    ) -> None:
        """Keeps its collaborators."""
        self._subjects = subjects
        self._vectors = vectors
        self._changes = changes
        self._finder = finder
        self._touch = touch
        self._consents = consents

    async def for_chat(self, tenant_id: str, user_id: str, query: str) -> Noted:
        """The memories for a question: every rule, and what is relevant of the others. An empty query finds rules only.

        Of more than `MOST_RULES` rules the newest count.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        subject = await self._subjects.find(tenant_id, user_id)
        if subject is None or not await self._consents.allows(subject):
            return Noted()
        mark = self._changes.level.mark()
        rules, found = await asyncio.gather(
            self._vectors.page(subject, RecordFilter(KIND, type=RULE), 0, MOST_RULES),
            self._relevant(subject, query),
        )
        notes = {record.id: _note(memory_of(record), 0.0) for record in rules[0]}
        notes |= {one.memory.id: _note(one.memory, one.score) for one in found}
        return Noted(list(notes.values()), self._changes.level.lacked_since(mark), lambda ids: self._used(subject, ids))

    async def _relevant(self, subject: Subject, query: str) -> list[Found]:
        return await self._finder.find(subject, query, RELEVANT, types=(FACT, CONTEXT)) if query else []

    def _used(self, subject: Subject, ids: Sequence[str]) -> None:
        if self._touch is not None:
            self._touch.touch(subject, ids)


def _note(memory: TypedMemory, score: float) -> Note:
    return Note(memory.id, memory.memory_type, memory.content, memory.importance, score, memory.updated_at)
