"""What is kept of a person, category by category: how it is given out whole, and how it is erased and seen to be gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from memoryos_server.domain.ports.memories import Subject

ERASING, PARTIAL, ERASED = "erasing", "partial", "ok"
"""The states of an erasure: nothing was seen to be gone yet; some of it is left; all of it was seen to be gone."""

NOT_OURS = "not_ours"
"""What a certificate says of the files of a store that somebody else runs."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose data: of an erasure without a name, which is known no more once it is begun.

    Attributes:
        tenant_id: The tenant.
        lookup: The keyed hash of tenant and user.
        subject_id: Under what the stores keep the data; "": they never heard of the user.
        before: What came later than this is not meant.
        user_id: The user, for an export; "" for an erasure.
    """

    tenant_id: str
    lookup: str
    subject_id: str
    before: datetime
    user_id: str = ""


class UserData(Protocol):
    """One category of what is kept of people.

    Attributes:
        name: The category, as an export and a certificate call it.
    """

    name: str

    def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Every item, as JSON has it, read in pieces; none without a subject if the category needs one.

        Raises:
            Stale: The data was erased meanwhile.
        """

    async def erase(self, whose: Whose) -> int:
        """Removes all of it, for good; gives how much there was, as far as that is known. May be repeated."""

    async def left(self, whose: Whose) -> int:
        """How much of it is there, looked at anew."""


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one category.

    Attributes:
        removed: How much was removed, over all attempts.
        left: How much was left when it was looked at last; None: it could not be looked at.
        error: Why it failed last, "" if it did not; never content.
    """

    removed: int = 0
    left: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Erasure:
    """The record of an erasure, from its beginning to its end: its certificate.

    Attributes:
        id: 32 hex digits.
        whose: Whose data. No name.
        actor: The key's id of who asked for it.
        requested_at: When it was asked for, and the key of the data destroyed.
        state: `ERASING`, `PARTIAL` or `ERASED`.
        parts: Category -> what became of it.
        attempts: How often it was tried.
        verified_at: When everything was last seen to be gone, or None.
        settled: It was looked at once more, after all that was under way at its beginning had come to an end.
        files: Store -> when its files were rewritten without the data, as RFC 3339 text; `NOT_OURS`; absent: not yet.
        compacted_at: When the last of them was, or None. All stores somebody else's: None.
        told: The audit says how it ended.
        revision: Raised whenever it is kept.
    """

    id: str
    whose: Whose
    actor: str
    requested_at: datetime
    state: str = ERASING
    parts: Mapping[str, Part] = field(default_factory=dict)
    attempts: int = 0
    verified_at: datetime | None = None
    settled: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    compacted_at: datetime | None = None
    told: bool = False
    revision: int = 0

    @property
    def errors(self) -> list[str]:
        """What is not gone, one line per category."""
        return [
            f"{name}: {part.error or f'{part.left} left'}"
            for name, part in sorted(self.parts.items())
            if part.error or part.left
        ]


class Erasures(Protocol):
    """The records of erasures."""

    def lookup(self, tenant_id: str, user_id: str) -> str:
        """The keyed hash of a tenant and a user."""

    def fresh_id(self, tenant_id: str, user_id: str) -> str:
        """An id for an erasure of a user that is still to begin."""

    async def begin(self, tenant_id: str, user_id: str, actor: str, now: datetime, *, erasure_id: str = "") -> Erasure:
        """In one atomic, durable write: the epoch ends, the data's key is destroyed, and the erasure is recorded.

        From then on nothing of before can be read or added. Who comes back is somebody new. Every replica is told.

        Args:
            tenant_id: The tenant.
            user_id: The user.
            actor: The key's id of who asks for it.
            now: The present time.
            erasure_id: What `fresh_id` gave for this user; "": a new one.
        """

    async def find(self, erasure_id: str) -> Erasure | None:
        """The record of an id, or None."""

    async def pending(self, lookup: str = "") -> list[Erasure]:
        """Those that have not come to their end: all, or those of one user, by the keyed hash."""

    async def keep(self, erasure: Erasure, *, ended: bool = False) -> Erasure | None:
        """Keeps what became of an erasure, and gives it as it is kept; None, and nothing is kept, if somebody else did."""


class Compactor(Protocol):
    """Rewrites the stores' files, so that the bytes of what was deleted are in them no more."""

    async def compact(self) -> Mapping[str, str]:
        """Store -> when its files were rewritten, as RFC 3339 text, or `NOT_OURS`. All that was deleted before is gone then."""
