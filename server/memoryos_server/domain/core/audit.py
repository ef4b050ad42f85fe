"""What is recorded of a call.

The interceptor `audit` drafts an event from the method's policy. A use case whose store call is atomic takes the draft and
hands it to that call, so that change and record are one write; what nobody took, the interceptor writes itself. Events
never hold content.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from memoryos_server.domain.core.ids import uuid7

SYSTEM_TENANT = "_system"
"""The chain of unauthenticated events; no tenant may be called so."""


class AuditEvent(NamedTuple):
    """One recorded event. Every call makes one: hence a tuple, which takes a third of the time of a frozen dataclass.

    Attributes:
        id: UUIDv7.
        timestamp: When, UTC.
        event_type: Such as `memory.add`.
        tenant_id: The chain it belongs to; `_system` for unauthenticated ones.
        user_id: Whose data was touched; "" if nobody's. Sealed at rest.
        resource: What was touched, such as `memory/{id}`.
        action: The RPC's name.
        outcome: `ok`, `denied`, `failed`, `duplicate`, `intent`.
        actor: The key's id, or `anonymous`.
        address: The client's address. Sealed at rest.
        request_id: The id of the call.
        details: A reason code or count; never content.
        count: How many equal events it stands for.
        outlives: What was touched is to be told when the person is erased, too: it is recorded as of somebody unknown, with a
            keyed hash of user and address.
    """

    id: str
    timestamp: datetime
    event_type: str
    tenant_id: str
    user_id: str
    resource: str
    action: str
    outcome: str
    actor: str
    address: str = ""
    request_id: str = ""
    details: str = ""
    count: int = 1  # type: ignore[assignment]  # a tuple has a method of that name, which nobody needs here
    outlives: bool = False


@dataclass(slots=True)
class Draft:
    """The event of the present call, until somebody takes it.

    Attributes:
        event: The event; None: the call has none.
        taken: Somebody writes it together with the change.
        idle: The call changed nothing, although calls of its kind do; its event may be written late, as that of a read.
        ended: The call has ended, and with it its event was written, if nobody had taken it by then.
        late: Writes the event of a call that has ended while the event was taken, if that comes to nothing.
    """

    event: AuditEvent | None = None
    taken: bool = field(default=False)
    idle: bool = field(default=False)
    ended: bool = field(default=False)
    late: Callable[[AuditEvent], None] | None = None

    def take(self) -> AuditEvent | None:
        """The event, for who writes it together with a change; None if it is written already, or there is none.

        A write may begin or end after its call: so the event is taken before the write begins, and given back if that fails.
        """
        if self.taken or self.ended or self.event is None:
            return None
        self.taken = True
        return self.event

    def give_back(self) -> None:
        """Says that the change is not known to have become one: so the event is written by itself.

        It may have been written with the change after all, by a store that answered too late: so this is another one.
        """
        if self.taken and self.event is not None:
            self.taken = False
            self.event = self.event._replace(id=uuid7())
            if self.late is not None:
                self.late(self.event)


_draft: ContextVar[Draft | None] = ContextVar("memoryos_audit", default=None)


def begin(event: AuditEvent | None) -> Draft:
    """Opens the draft of the present call."""
    draft = Draft(event)
    _draft.set(draft)
    return draft


def nothing_changes() -> None:
    """Says of the present call that it changes nothing."""
    if (present := _draft.get()) is not None:
        present.idle = True


def concerns(address: str) -> None:
    """Says of the present call that it is about an address: its event shows that one, sealed, and not the caller's."""
    if (present := _draft.get()) is not None and present.event is not None:
        present.event = present.event._replace(address=address)


def draft() -> Draft | None:
    """The draft of the present call, or None outside of one."""
    return _draft.get()
