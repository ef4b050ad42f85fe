"""What was recorded, for those who may read it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.audit import AuditEvent


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are asked for.

    Attributes:
        tenant_id: Of whose chain.
        user_id: Only those about this user; "" for all.
        event_type: Only those of this type; "" for all.
        before: Only those that happened before this time; None: at any.
        after: Only those that happened after this time; None: at any.
    """

    tenant_id: str
    user_id: str = ""
    event_type: str = ""
    before: datetime | None = None
    after: datetime | None = None


class AuditTrail(Protocol):
    """Reads recorded events, archived ones included."""

    async def page(self, wanted: Wanted, limit: int, below: int | None) -> tuple[list[AuditEvent], int | None]:
        """Events in the order in which they were recorded, the newest first, and where the next page begins.

        Args:
            wanted: Which ones.
            limit: At most so many.
            below: Where this page begins, as the page before said; None: at the newest.
        """

    async def total(self, tenant_id: str) -> int:
        """How many events were ever recorded of a tenant."""
