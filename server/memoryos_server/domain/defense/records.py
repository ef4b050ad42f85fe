"""What is recorded of the defense: every ban, and keys that are refused, each at most once a minute."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports.defense import PERMANENT, Ban

EVERY_SECONDS = 60.0
_MOST = 10_000


class Records:
    """Makes records of it.

    Args:
        put: Takes them; returns at once.
        clock: Seconds, monotonic.
    """

    def __init__(self, put: Callable[[AuditEvent], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._put = put
        self._clock = clock
        self._said: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def banned(self, ban: Ban) -> None:
        """Records a ban."""
        length = "permanent" if ban.until == PERMANENT else f"seconds={ban.until - ban.banned_at:.0f}"
        self._record("defense.ban", ban.reason, "defense", f"offence={ban.offence} {length}", ban.place)

    def limited(self, key_id: str, limit: str) -> None:
        """Records that a key was refused, with the number of times that this was not recorded."""
        now = self._clock()
        at, left_out = self._said.get((key_id, limit), (float("-inf"), 0))
        if now - at < EVERY_SECONDS:
            self._said[key_id, limit] = at, left_out + 1
            return
        self._said[key_id, limit] = now, 0
        self._said.move_to_end((key_id, limit))
        if len(self._said) > _MOST:
            self._said.popitem(last=False)
        self._record("defense.limit", limit, key_id, f"before={left_out}")

    def _record(self, event_type: str, action: str, actor: str, details: str, address: str = "") -> None:
        self._put(
            AuditEvent(
                id=uuid7(),
                timestamp=utc_now(),
                event_type=event_type,
                tenant_id=SYSTEM_TENANT,
                user_id="",
                resource="",
                action=action,
                outcome="denied",
                actor=actor,
                address=address,
                details=details,
            )
        )
