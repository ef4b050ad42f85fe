"""What the clients answer with: plain frozen values, so that callers need no generated code.

Conversion from messages stands here once, for the synchronous and the asynchronous client.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.v1 import chat_service_pb2, memory_service_pb2, system_service_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class AddedMemory:
    """Where a turn is kept.

    Attributes:
        event_id: The id given, or the one the client made.
        memory_id: The id of the kept turn.
        duplicate: The event was kept before; nothing was written.
        degraded: A store was down; the turn is durable, search follows.
    """

    event_id: str
    memory_id: str
    duplicate: bool
    degraded: bool


@dataclass(frozen=True, slots=True)
class Episode:
    """One turn as it was said.

    Attributes:
        id: The memory's id.
        event_id: The id it was added under.
        session_id: The conversation, "" if none.
        role: `user`, `assistant` or `system`.
        name: The speaker, "" if none.
        content: The text, verbatim.
        timestamp: When it was said, UTC.
        score: The relevance, 0..1.
    """

    id: str
    event_id: str
    session_id: str
    role: str
    name: str
    content: str
    timestamp: datetime
    score: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One recent turn: who said what, when (UTC)."""

    role: str
    content: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Segment:
    """A summary of a topic; `score` is 0..1."""

    id: str
    summary: str
    score: float
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is believed: since when, until when, and why.

    Attributes:
        id: The fact's id; `history` tells what was believed before.
        text: The fact as a sentence.
        subject: Whom it is about: `user`, or a name.
        predicate: What it is about, such as `lives_in`.
        value: The value as it was spelled.
        confidence: How sure it is, 0..1; it grows when the fact is said again.
        believed_since: When it was said first, UTC.
        believed_until: When something said contradicted it, or None.
        valid_from: From when it holds, where the words tell, or None.
        valid_to: Until when it holds, where the words tell, or None.
        source_ids: The memory ids of the turns that say so.
    """

    id: str
    text: str
    subject: str
    predicate: str
    value: str
    confidence: float
    believed_since: datetime
    believed_until: datetime | None
    valid_from: datetime | None
    valid_to: datetime | None
    source_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an episode's score came about: `parts` sum to `raw`, `calibration` says how that became 0..1."""

    episode_id: str
    parts: dict[str, float]
    raw: float
    calibration: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What memory holds on a question.

    Attributes:
        episodes: The relevant turns, best first.
        short_term: The newest turns, oldest first.
        mid_term: The relevant segments, best first.
        profile: A short text on the user, "" if nothing is known.
        knowledge: What is known, as sentences.
        facts: Those of `knowledge`, in its order, with where they come from.
        explanations: In the order of `episodes`; empty unless asked for.
        degraded: A store was down; something may be missing.
        withheld: Why memory is not used, `consent_withdrawn`; "" where it is.
    """

    episodes: tuple[Episode, ...]
    short_term: tuple[Turn, ...]
    mid_term: tuple[Segment, ...]
    profile: str
    knowledge: tuple[str, ...]
    facts: tuple[Fact, ...]
    explanations: tuple[Explanation, ...]
    degraded: bool
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a memory; `version` counts from 1."""

    version: int
    content: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class InjectedMemory:
    """One memory that was put into a request to the provider.

    Attributes:
        id: The memory's id.
        tier: Where it comes from, such as `episode`.
        score: Its relevance, 0..1.
        tokens: What it cost in the request, estimated.
    """

    id: str
    tier: str
    score: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatMemory:
    """What memory did for an answer.

    Attributes:
        injected: The memories put into the request, in order.
        tokens: Their estimated cost.
        source: What answered: `upstream` or `recall`.
        remembered: `true`, `false`, or `pending` at the start of a stream.
        event_id: The id the turn is remembered under, "" if it is not.
        session_id: The conversation the turn belongs to.
        receipt_id: The id of the chat's receipt, "" if it has none.
    """

    injected: tuple[InjectedMemory, ...]
    tokens: int
    source: str
    remembered: str
    event_id: str
    session_id: str
    receipt_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer.

    Attributes:
        content: The first choice's text.
        finish_reason: The first choice's.
        memory: What memory did.
        body: OpenAI's whole answer, as JSON bytes.
        degraded: A store was down.
    """

    content: str
    finish_reason: str
    memory: ChatMemory
    body: bytes
    degraded: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be named, and who serves it."""

    id: str
    owned_by: str


@dataclass(frozen=True, slots=True)
class Health:
    """What can be served.

    Attributes:
        mode: `ready`, `degraded_ready` or `not_ready`.
        redis: `up` or `down`.
        qdrant: `up` or `down`.
    """

    mode: str
    redis: str
    qdrant: str


def short(enum: Any, value: int) -> str:
    """An enum value's name as REST shows it: without the prefix that all values share, in lower case."""
    prefix = enum.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
    known = enum.DESCRIPTOR.values_by_number.get(value)
    return known.name.removeprefix(prefix).lower() if known else str(value)


def value(enum: Any, name: str, what: str) -> int:
    """The number of an enum value given by its short name.

    Raises:
        ValueError: There is no such value; the message lists those there are.
    """
    prefix = enum.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
    found = enum.DESCRIPTOR.values_by_name.get(prefix + name.upper())
    if found is None or found.number == 0:
        names = ", ".join(v.name.removeprefix(prefix).lower() for v in enum.DESCRIPTOR.values[1:])
        raise ValueError(f"{what}: {name!r} is not one of {names}")
    return int(found.number)


def when(stamp: Timestamp) -> datetime:
    """A timestamp as an aware datetime."""
    return stamp.ToDatetime(tzinfo=UTC)


def stamp(moment: datetime) -> Timestamp:
    """A datetime as a timestamp; a naive one is refused, because nobody can know its zone.

    Raises:
        ValueError: It is naive.
    """
    if moment.tzinfo is None:
        raise ValueError("the time needs a zone, such as datetime.now(UTC)")
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def added(message: memory_service_pb2.AddMemoryResponse, degraded: bool) -> AddedMemory:
    """AddedMemory of its message."""
    return AddedMemory(message.event_id, message.memory_id, message.duplicate, degraded)


def retrieved(message: memory_service_pb2.RetrieveMemoryResponse, degraded: bool) -> Retrieved:
    """Retrieved of its message."""
    return Retrieved(
        episodes=tuple(
            Episode(
                e.id,
                e.event_id,
                e.session_id,
                short(types_pb2.Role, e.role),
                e.name,
                e.content,
                when(e.timestamp),
                e.score,
            )
            for e in message.episodes
        ),
        short_term=tuple(Turn(short(types_pb2.Role, t.role), t.content, when(t.timestamp)) for t in message.short_term),
        mid_term=tuple(Segment(s.id, s.summary, s.score, tuple(s.tags)) for s in message.mid_term),
        profile=message.long_term.profile,
        knowledge=tuple(message.long_term.knowledge),
        facts=tuple(map(_fact, message.long_term.facts)),
        explanations=tuple(
            Explanation(x.episode_id, {p.name: p.value for p in x.parts}, x.raw, x.calibration)
            for x in message.explanations
        ),
        degraded=degraded,
        withheld=message.withheld,
    )


def _fact(fact: memory_service_pb2.Fact) -> Fact:
    return Fact(
        id=fact.id,
        text=fact.text,
        subject=fact.subject,
        predicate=fact.predicate,
        value=fact.value,
        confidence=fact.confidence,
        believed_since=when(fact.believed_since),
        believed_until=when(fact.believed_until) if fact.HasField("believed_until") else None,
        valid_from=when(fact.valid_from) if fact.HasField("valid_from") else None,
        valid_to=when(fact.valid_to) if fact.HasField("valid_to") else None,
        source_ids=tuple(fact.source_ids),
    )


def versions(message: memory_service_pb2.GetMemoryHistoryResponse) -> list[Version]:
    """The versions of their message."""
    return [Version(v.version, v.content, when(v.changed_at)) for v in message.versions]


def chat_memory(message: chat_service_pb2.ChatMemory) -> ChatMemory:
    """ChatMemory of its message."""
    return ChatMemory(
        injected=tuple(
            InjectedMemory(i.id, short(types_pb2.Tier, i.tier), i.score, i.tokens) for i in message.injected
        ),
        tokens=message.tokens,
        source=message.source,
        remembered=message.remembered,
        event_id=message.event_id,
        session_id=message.session_id,
        receipt_id=message.receipt_id,
    )


def answer(message: chat_service_pb2.CreateChatCompletionResponse, degraded: bool) -> ChatAnswer:
    """ChatAnswer of its message."""
    return ChatAnswer(message.content, message.finish_reason, chat_memory(message.memory), message.body, degraded)


def health(message: system_service_pb2.GetHealthStatusResponse) -> Health:
    """Health of its message."""
    modes, states = system_service_pb2.ServingMode, system_service_pb2.BackendState
    return Health(short(modes, message.mode), short(states, message.redis), short(states, message.qdrant))
