"""What people agree to, as it is kept, and the one question that everything else asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.ports.memories import Subject


@dataclass(frozen=True, slots=True)
class Consent:
    """A decision.

    Attributes:
        id: A UUIDv7.
        purpose: What for.
        granted: Whether the person agrees.
        recorded_at: When it was recorded, UTC.
        actor: The id of the key that recorded it, or `anonymous`.
    """

    id: str
    purpose: str
    granted: bool
    recorded_at: datetime
    actor: str


class ConsentStore(Protocol):
    """Decisions, sealed for their person; they go with an erasure of the person."""

    async def record(self, subject: Subject, consent: Consent, audit: AuditEvent | None) -> None:
        """Keeps a decision with its audit event in one atomic, durable write; again does no harm.

        What it says of `data_processing` holds for every write that any process accepts after this returns.

        Raises:
            Stale: The subject's epoch is over. Nothing was written.
        """

    async def last(self, subject: Subject, purpose: str) -> Consent | None:
        """The decision that counts, or None if there is none."""

    async def history(self, subject: Subject) -> Sequence[Consent]:
        """Every decision, in the order in which they were kept."""

    async def processing(self, subject: Subject) -> bool | None:
        """What counts for `data_processing`, None for no decision.

        It comes with the subject, from its cache: asking costs nothing where the subject was found just before.
        """


class Consents(Protocol):
    """Whether a person may be remembered and recalled: the one place that decides."""

    async def allows(self, subject: Subject | None) -> bool:
        """Whether a subject, None for a person never heard of, may be."""


class Everybody:
    """Allows everybody: where nothing is known of consent."""

    async def allows(self, subject: Subject | None) -> bool:
        """True."""
        return True


EVERYBODY = Everybody()
