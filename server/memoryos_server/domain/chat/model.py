"""The values and the protocol of chat."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.ports import Turn


class Ranked(Protocol):
    """A found turn."""

    @property
    def turn(self) -> Turn:
        """The turn."""

    @property
    def score(self) -> float:
        """The relevance, 0..1."""

    @property
    def parts(self) -> Mapping[str, float]:
        """Name -> addend of the score before calibration; only when explained."""


class Topic(Protocol):
    """A found segment."""

    @property
    def id(self) -> str:
        """The segment's id."""

    @property
    def summary(self) -> str:
        """What was talked about."""

    @property
    def score(self) -> float:
        """The relevance, 0..1."""


class Belief(Protocol):
    """A fact that is believed."""

    @property
    def id(self) -> str:
        """The fact's id."""

    @property
    def text(self) -> str:
        """The fact as a sentence."""

    @property
    def since(self) -> datetime:
        """From when it was believed."""


class Recollection(Protocol):
    """What a user's memory answers."""

    @property
    def episodes(self) -> Sequence[Ranked]:
        """The relevant turns, best first."""

    @property
    def short_term(self) -> Sequence[Turn]:
        """The newest turns, oldest first."""

    @property
    def mid_term(self) -> Sequence[Topic]:
        """The relevant segments, best first."""

    @property
    def knowledge(self) -> Sequence[Belief]:
        """What is believed: what has to do with the question first, then the rest."""

    @property
    def outdated(self) -> frozenset[str]:
        """Ids of those episodes that say what is no longer believed."""

    @property
    def degraded(self) -> bool:
        """Something may be missing, because a store is down or just back."""


class Memory(Protocol):
    """A user's memory, as far as chat knows it."""

    async def recall(
        self, tenant_id: str, user_id: str, query: str, *, limit: int, explain: bool = False
    ) -> Recollection:
        """What is relevant to a question; nothing for a user never heard of. With `explain`, how scores came about.

        Raises:
            BackendDown: Memory does not answer.
        """

    async def remember(self, tenant_id: str, user_id: str, turns: Sequence[NewTurn], *, subject_id: str = "") -> object:
        """Keeps turns, all or none; durable when this returns. A repeated event_id with the same content writes nothing.

        With `subject_id` they are that person's, and of nobody who came back under the same name.

        Raises:
            Exists: An event_id was used for other content.
            Stale: The person was erased meanwhile.
            BackendDown: The turns could not be kept.
        """


class Note(Protocol):
    """A typed memory, as chat knows it."""

    @property
    def id(self) -> str:
        """The memory's id."""

    @property
    def memory_type(self) -> str:
        """`rule`, `fact` or `context`."""

    @property
    def content(self) -> str:
        """The text."""

    @property
    def importance(self) -> float:
        """0..1."""

    @property
    def score(self) -> float:
        """The relevance, 0..1; a rule may have none."""

    @property
    def at(self) -> datetime:
        """When it came to say this, UTC."""


class Noted(Protocol):
    """The typed memories for a question."""

    @property
    def notes(self) -> Sequence[Note]:
        """Every rule, and what is relevant of the others; in no order."""

    @property
    def degraded(self) -> bool:
        """Something may be missing, because a store is down or just back."""

    def used(self, ids: Sequence[str]) -> None:
        """Notes that these were injected, which counts as an access."""


class Notes(Protocol):
    """A user's typed memories, as far as chat knows them."""

    async def for_chat(self, tenant_id: str, user_id: str, query: str) -> Noted:
        """The typed memories for a question, "" for none: rules only; nothing for a user never heard of.

        Raises:
            BackendDown: They cannot be read.
        """


class MayUse(Protocol):
    """Whose memory may be used."""

    async def __call__(self, tenant_id: str, user_id: str) -> bool:
        """Whether a user may be remembered and recalled.

        Raises:
            BackendDown: That is not known here, and the store does not answer.
        """


class ChatOptions(Protocol):
    """What chat waits for and spends; the settings of memory have this form."""

    @property
    def recall_deadline_seconds(self) -> float:
        """How long a chat waits for memory."""

    @property
    def remember_deadline_seconds(self) -> float:
        """How long the end of an answer waits until the turn is durable."""

    @property
    def inject_tokens(self) -> int:
        """The most that memories may cost in a request, in estimated tokens; 0: inject nothing."""

    @property
    def session_idle_seconds(self) -> float:
        """The idle gap after which a chat without a session id is a new session."""


@dataclass(frozen=True, slots=True)
class RecalledItem:
    """A memory found for a question.

    Attributes:
        id: The memory's id.
        tier: Where it comes from: `short_term`, `episode`, `segment`, `knowledge`, or the type of a typed memory:
            `rule`, `fact`, `context`.
        role: Who said it: `user`, `assistant` or `system`; "" if it is not what somebody said.
        content: The text, verbatim.
        timestamp: When it was said, UTC; None if it was at several times.
        score: The relevance, 0..1.
        importance: 0..1; what nobody weighed is of middling importance.
        outdated: It says what is no longer believed.
        parts: Name -> addend of the score before calibration, as far as it is a sum.
        tokens: What it costs in a request, estimated; 0 before it is put into one.
        cut: Only its beginning is put in.
    """

    id: str
    tier: str
    role: str
    content: str
    timestamp: datetime | None
    score: float
    importance: float = 0.5
    outdated: bool = False
    parts: Mapping[str, float] = field(default_factory=dict, compare=False)
    tokens: int = 0
    cut: bool = False

    @property
    def said(self) -> bool:
        """It is what somebody said, not what was made of it or noted."""
        return self.role != ""


class MemoryMode(enum.Enum):
    """What a chat does with memory."""

    ON = "on"
    OFF = "off"
    READ = "read"
    WRITE = "write"


class Api(enum.Enum):
    """In which of OpenAI's forms a conversation is continued."""

    CHAT_COMPLETIONS = "chat_completions"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to continue.

    Attributes:
        body: OpenAI's request as JSON text.
        user_id: Whose memory it is, "" for whom the key or header names.
        session_id: The conversation, or None.
        memory: What to do with memory.
        idempotency_key: Dedupes the remembering, or None.
        api: The form of the body, and of the answer.
        comment: Whether a stream of the provider's bytes ends with a comment that says what memory did.
    """

    body: str
    user_id: str = ""
    session_id: str | None = None
    memory: MemoryMode = MemoryMode.ON
    idempotency_key: str | None = None
    api: Api = Api.CHAT_COMPLETIONS
    comment: bool = False


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What memory did for an answer.

    Attributes:
        injected: The memories put into the request, or quoted by the built-in model, in order.
        tokens: Their estimated cost.
        source: What answered: `upstream` or `recall`.
        remembered: `true`, `false`, or `pending` at the start of a stream.
        event_id: The id the turn is remembered under, "" if it is not.
        session_id: The conversation the turn belongs to, "" if it is not remembered.
        degraded: Memory should have been recalled and could not be, or not all of it.
        provider: The name of the provider that answered, "" for the built-in model.
        dropped: The members of the request that the provider does not know and that were left out.
        receipt_id: The id of the chat's receipt, "" if it has none.
        reason: Why memory is not used although it was asked for, as a code; "" where it is.
    """

    injected: tuple[RecalledItem, ...] = ()
    tokens: int = 0
    source: str = "upstream"
    remembered: str = "false"
    event_id: str = ""
    session_id: str = ""
    degraded: bool = False
    provider: str = ""
    dropped: tuple[str, ...] = ()
    receipt_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole answer.

    Attributes:
        body: OpenAI's answer: the provider's bytes, with the member `memoryos` spliced in unless memory is off.
        content_type: The provider's.
        content: Choice 0's text.
        finish_reason: Choice 0's.
        memory: What memory did.
    """

    body: bytes
    content_type: str
    content: str
    finish_reason: str
    memory: MemoryReport


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """The first event of a stream."""

    memory: MemoryReport


@dataclass(frozen=True, slots=True)
class ChatBytes:
    """The provider's next bytes, of a raw stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ChatFinished:
    """The last event of a stream that came to its end, with `remembered` known."""

    memory: MemoryReport


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be named.

    Attributes:
        id: The name.
        created: Unix seconds, 0 if not known.
        owned_by: Who serves it.
    """

    id: str
    created: int
    owned_by: str
