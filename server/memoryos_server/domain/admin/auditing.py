"""Who may read what was recorded: everybody the events about the own user, an administrator those of the tenant."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent
from memoryos_server.domain.core.caller import Caller, check_tenant
from memoryos_server.domain.core.faults import Forbidden, Invalid
from memoryos_server.domain.core.text import check_id
from memoryos_server.domain.ports.audit import AuditTrail, Wanted

DEFAULT_LIMIT = 50
MOST = 1000
"""How many events a page has at most, by default and if asked for."""

_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class AuditService:
    """Recorded events.

    Args:
        trail: Where they are read.
    """

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def logs(
        self,
        who: Caller,
        *,
        user_id: str = "",
        event_type: str = "",
        limit: int | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        page_token: str = "",
        tenant_id: str = "",
    ) -> tuple[list[AuditEvent], str]:
        """A page of recorded events, the newest first, and the token of the next page, "" at the end.

        Args:
            who: Who asks.
            user_id: About whom; "" for everybody of the tenant.
            event_type: Of what type; "" for all.
            limit: 1..1000; None for 50.
            before: Only what happened before.
            after: Only what happened after.
            page_token: What came with the page before; "" for the first page.
            tenant_id: Whose events; "" for the tenant of the call.

        Raises:
            Invalid: A field is malformed or out of range.
            Forbidden: The caller may not see these.
            BackendDown: The store does not answer.
        """
        if limit is not None and not 1 <= limit <= MOST:
            raise Invalid(f"limit must be 1..{MOST}", param="limit")
        if event_type and not _TYPE.fullmatch(event_type):
            raise Invalid("event_type must be the name of a type, such as memory.add", param="event_type")
        if before is not None and after is not None and after >= before:
            raise Invalid("after must lie before `before`", param="after")
        below = _number(page_token)
        wanted = Wanted(_tenant(who, tenant_id), _user(who, user_id), event_type, before, after)
        found, following = await self._trail.page(wanted, limit or DEFAULT_LIMIT, below)
        return found, "" if following is None else _token(following)

    async def total(self, who: Caller) -> int:
        """How many events were ever recorded of the caller's tenant.

        Raises:
            BackendDown: The store does not answer.
        """
        return await self._trail.total(who.tenant_id)


def _tenant(who: Caller, named: str) -> str:
    if named in ("", who.tenant_id):
        return who.tenant_id
    if named != SYSTEM_TENANT:
        check_tenant(named, "tenant_id")
    if not (who.any_tenant and who.may("admin")):
        raise Forbidden("Only an administrator of all tenants may name another tenant", param="tenant_id")
    return named


def _user(who: Caller, named: str) -> str:
    """Whose events the caller sees, "" for everybody's."""
    if named:
        check_id(named, "user_id")
        if who.named_user and who.named_user != named:
            raise Invalid("X-User-ID and the request name different users", param="user_id")
    named = named or who.named_user or ""
    if who.may("admin") or (named and named == who.user_id):
        return named
    what = "Events about others need" if named else "Without user_id the events are the whole tenant's, which needs"
    raise Forbidden(f"{what} the permission admin", param="user_id", metadata={"permission": "admin"})


def _token(below: int) -> str:
    return base64.urlsafe_b64encode(str(below).encode()).decode().rstrip("=")


def _number(token: str) -> int | None:
    if not token:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not re.fullmatch(r"[1-9][0-9]{0,15}", text, re.ASCII):
        raise Invalid("page_token is none that was given out", param="page_token")
    return int(text)
