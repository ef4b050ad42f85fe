"""Keeps what is worth remembering in a text, without keeping anything twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.consent import withdrawn
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.text import MAX_TEXT, check_text
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memories.extract import Extraction, Message
from memoryos_server.domain.memories.model import KIND, Extracted, Suggestion, memory_of, new_record
from memoryos_server.domain.memories.neighbours import Changes
from memoryos_server.domain.memories.sameness import Sameness, Traits, cosine
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.ports import Change, Record, RecordQuery, Subject, Subjects, Vectors
from memoryos_server.domain.ports.consents import EVERYBODY, Consents
from memoryos_server.domain.ports.shield import UNSHIELDED, Shield

MAX_MESSAGES = 1000
ROLES = ("user", "assistant", "system")

_NEIGHBOURS = 10
"""How many memories close to a suggestion are looked at for the same."""


class Extracting:
    """Extracts typed memories.

    Args:
        subjects: Who is known.
        vectors: The searchable side.
        changes: The way of changes.
        finder: Finds memories by meaning and words.
        extraction: Finds what is worth remembering in a text.
        sameness: Says whether two memories say the same.
        consents: Who may be remembered.
        shield: Looks at what is read, and cleans what is kept.
        now: The present time, UTC.
    """

    def __init__(
        self,
        subjects: Subjects,
        vectors: Vectors,
        changes: Changes,
        finder: Finder,
        extraction: Extraction,
        sameness: Sameness,
        *,
        consents: Consents = EVERYBODY,
        shield: Shield = UNSHIELDED,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keeps its collaborators."""
        self._subjects = subjects
        self._vectors = vectors
        self._changes = changes
        self._finder = finder
        self._extraction = extraction
        self._sameness = sameness
        self._consents = consents
        self._shield = shield
        self._now = now

    async def extract(
        self,
        who: Caller,
        *,
        messages: Sequence[Message] = (),
        text: str | None = None,
        deduplicate: bool = False,
    ) -> Extracted:
        """Keeps what is worth remembering in a conversation or a text: exactly one of the two.

        Raises:
            Invalid: A field is malformed, or not exactly one of the two is given.
            Forbidden: reason `consent_withdrawn`: the user may not be remembered.
            BackendDown: The memories could not be kept.
        """
        owner = who.owner()
        read = _read(messages, text)
        # Before a provider reads it.
        if not await self._consents.allows(await self._subjects.find(who.tenant_id, owner)):
            raise withdrawn()
        param = "text" if text is not None else "messages"
        await self._shield.look(who, [content for _, content in read], where="memory", param=param, owner=owner)
        now = self._now()
        given = [(role, self._shield.passed_on(content)) for role, content in read]
        suggested = [
            Suggestion(self._shield.clean(one.content), one.memory_type, one.importance)
            for one in await self._extraction.suggest(given, now)
        ]
        if not suggested:
            return Extracted((), 0)
        subject = await self._subjects.open(who.tenant_id, owner)
        records = [new_record(uuid7(), one.content, one.memory_type, one.importance, now) for one in suggested]
        kept = records
        if not deduplicate:

            async def keep_all() -> Change:
                return Change(put=tuple(records))

            degraded = await self._changes.change(subject, keep_all, reads=False)
            return Extracted([memory_of(record) for record in kept], 0, degraded)
        needs = await self._finder.needs([one.content for one in suggested])
        traits = await asyncio.to_thread(lambda: [self._sameness.traits(one.content) for one in suggested])

        async def keep_new() -> Change | None:
            nonlocal kept
            kept = await self._new(subject, records, needs, traits)
            return Change(put=tuple(kept)) if kept else None

        degraded = await self._changes.change(subject, keep_new)
        return Extracted([memory_of(record) for record in kept], len(records) - len(kept), degraded)

    async def _new(
        self,
        subject: Subject,
        records: Sequence[Record],
        needs: Sequence[tuple[Mapping[str, float], Mapping[str, Sequence[float]]]],
        traits: Sequence[Traits],
    ) -> list[Record]:
        """Those of the records that say what neither a memory nor a record before them says."""
        queries = [RecordQuery(KIND, terms, dense, _NEIGHBOURS) for terms, dense in needs]
        close = await self._vectors.find(subject, queries)
        kept: list[int] = []
        for at, hits in enumerate(close):
            known = any(
                self._sameness.same(
                    traits[at],
                    self._sameness.traits(hit.record.text),
                    max((score for leg, score in hit.scores.items() if leg in needs[at][1]), default=None),
                )
                for hit in hits
            )
            if known or any(
                self._sameness.same(traits[at], traits[other], cosine(needs[at][1], needs[other][1])) for other in kept
            ):
                continue
            kept.append(at)
        return [records[at] for at in kept]


def _read(messages: Sequence[Message], text: str | None) -> list[Message]:
    """What is to be read, as a conversation."""
    if text is not None and messages:
        raise Invalid("text and messages exclude each other: give one of the two", param="text")
    if text is not None:
        return [("user", check_text(text, "text"))]
    if not messages:
        raise Invalid("Give messages or text", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise Invalid(f"messages must be at most {MAX_MESSAGES:,}", param="messages")
    for index, (role, content) in enumerate(messages):
        if role not in ROLES:
            raise Invalid(f"role must be one of {', '.join(ROLES)}", param=f"messages[{index}].role")
        check_text(content, f"messages[{index}].content")
    if sum(len(content) for _, content in messages) > MAX_TEXT:
        raise Invalid(f"messages must have at most {MAX_TEXT:,} characters in all", param="messages")
    return list(messages)
