"""What the operator asks of persons' data, by the same use cases as calls: hand over, erase, see what became of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import Caller, check_tenant
from memoryos_server.domain.core.faults import Fault, Invalid, NotFound
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import AuditLog
from memoryos_server.domain.ports.privacy import ERASED, Erasure, Erasures
from memoryos_server.domain.privacy.service import PrivacyService

_PIECE = 8000
"""Characters of a document in one item, which as JSON is one line of at most 64 KiB."""


class PrivacyDesk:
    """Runs one command.

    Args:
        privacy: The use cases.
        erasures: The records of erasures, of all tenants.
        log: Where outcomes are recorded.
        actor: Who audit events name.
        whole: All that is kept of a person can be read: a server runs.
    """

    def __init__(
        self, privacy: PrivacyService, erasures: Erasures, log: AuditLog, actor: str, *, whole: bool = True
    ) -> None:
        self._privacy = privacy
        self._erasures = erasures
        self._log = log
        self._actor = actor
        self._whole = whole

    async def run(self, command: str, arguments: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The command's answer: an export in items with a `piece` of its text each, else one certificate.

        Raises:
            Fault: The command failed; the message says why.
        """
        if command == "certificate":
            yield certificate(await self._found(arguments["id"]))
            return
        check_tenant(arguments["tenant_id"], "tenant")
        who = Caller(arguments["tenant_id"], permissions=frozenset({"admin"}), key_id=self._actor, any_tenant=True)
        user_id: str = arguments["user_id"]
        if command == "export":
            if not self._whole:
                raise Fault("an export reads all of memory, which only a running server has open: start it first")
            async for item in self._export(who, user_id):
                yield item
        elif command == "delete":
            yield certificate(await self._delete(who, user_id))
        else:
            raise Invalid(f"unknown command privacy.{command}", param="command")

    async def _export(self, who: Caller, user_id: str) -> AsyncIterator[dict[str, Any]]:
        draft = audit.begin(self._event(who, user_id, "gdpr.export", "ExportUserData"))
        outcome = "failed"
        try:
            async for piece in await self._privacy.export(who, user_id):
                for at in range(0, len(piece), _PIECE):
                    yield {"piece": piece[at : at + _PIECE]}
            outcome = "ok"
        finally:
            await self._record(draft, outcome)

    async def _delete(self, who: Caller, user_id: str) -> Erasure:
        draft = audit.begin(self._event(who, user_id, "gdpr.delete", "DeleteUserData"))
        outcome = "failed"
        try:
            erasure = await self._privacy.erase(who, user_id)
            outcome = "ok" if erasure.state == ERASED else "partial"
        finally:
            await self._record(draft, outcome)
        return erasure

    async def _found(self, erasure_id: str) -> Erasure:
        found = await self._erasures.find(erasure_id)
        if found is None:
            raise NotFound("There is no such certificate", param="id")
        return found

    def _event(self, who: Caller, user_id: str, event_type: str, action: str) -> AuditEvent:
        return AuditEvent(uuid7(), utc_now(), event_type, who.tenant_id, user_id, "gdpr", action, "intent", who.key_id)

    async def _record(self, draft: audit.Draft, outcome: str) -> None:
        if draft.event is not None and not draft.taken:
            await self._log.append([draft.event._replace(outcome=outcome)])


def certificate(erasure: Erasure) -> dict[str, Any]:
    """An erasure as its certificate shows it over HTTP."""

    def time(at: datetime | None) -> str | None:
        return at.isoformat() if at else None

    return {
        "id": erasure.id,
        "status": erasure.state,
        "tenant_id": erasure.whose.tenant_id,
        "user_hash": erasure.whose.lookup,
        "requested_by": erasure.actor,
        "requested_at": time(erasure.requested_at),
        "attempts": erasure.attempts,
        "errors": erasure.errors,
        "categories": [{"category": name, **asdict(part)} for name, part in sorted(erasure.parts.items())],
        "verified_at": time(erasure.verified_at),
        "files": dict(erasure.files),
        "compacted_at": time(erasure.compacted_at),
    }
