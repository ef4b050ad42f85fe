"""What looks at texts, and who is told of what it finds."""

from __future__ import annotations

from collections.abc import Callable

from memoryos.settings import Settings, SettingsError
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.shield.shield import ContentShield, Suspicion


def open_shield(
    settings: Settings,
    counted: Callable[[str], None],
    record: Callable[[AuditEvent], None],
    suspected: Callable[[str, str, str], None] = lambda address, key_id, kind: None,
) -> ContentShield:
    """What looks at texts.

    Args:
        settings: What it looks for.
        counted: Told of each pattern that was found in a call.
        record: Has an event written soon.
        suspected: Told of each call in which any was found: the client's address, the key's id, and the kind, `injection`.
            A fault that it raises refuses the call.

    Raises:
        SettingsError: A kind to redact is unknown.
    """

    def noted(what: Suspicion) -> None:
        who = what.caller
        for name in what.ids:
            counted(name)
        record(
            AuditEvent(
                id=uuid7(),
                timestamp=utc_now(),
                event_type="injection.suspected",
                tenant_id=who.tenant_id,
                user_id=what.owner or who.named_user or who.user_id or "",
                resource=what.where,
                action="Shield",
                outcome="denied" if what.blocked else "ok",
                actor=who.key_id,
                address=who.address,
                request_id=who.request_id,
                details=",".join(what.ids),
            )
        )
        suspected(who.address, who.key_id, "injection")  # last: it may refuse the call

    options = settings.shield
    try:
        return ContentShield(options.injection, options.redact, upstream=options.redact_upstream, suspected=noted)
    except ValueError as error:
        raise SettingsError(f"shield.redact (MEMORYOS_SHIELD__REDACT): {error}") from None
