"""API keys: made, listed, revoked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent
from memoryos_server.domain.core.caller import ANY_TENANT, PERMISSIONS, check_tenant
from memoryos_server.domain.core.faults import Exists, Invalid, NotFound
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.text import check_id
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey, ApiKeys, AuditLog

MOST_BUDGET = 10**12
"""The largest budget that is still counted exactly, with room to spare."""

CHOSEN = re.compile(r"(?!key_)[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to make.

    Attributes:
        user_id: Its user, 1..256 characters.
        tenant_id: Its tenant; `*` may name any.
        permissions: At least one of `PERMISSIONS`.
        description: For people, at most 1,000 characters.
        expires_at: When it ends, or None.
        requests_per_minute: How many chats it may have within sixty seconds; 0: any number.
        tokens_per_day: How many tokens its chats may cost on a day, UTC; 0: any number.
        key: A chosen key, 16..256 of letters, digits and `._~-`, not starting `key_`; None makes a strong one.
    """

    user_id: str
    tenant_id: str
    permissions: Sequence[str]
    description: str = ""
    expires_at: datetime | None = None
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    key: str | None = None


class KeyService:
    """Keeps API keys. Every change is recorded with intent before and outcome after."""

    def __init__(self, keys: ApiKeys, audit: AuditLog) -> None:
        self._keys = keys
        self._audit = audit

    async def create(self, new: NewKey, actor: str) -> tuple[str, ApiKey]:
        """The key, shown this once, and its record.

        Raises:
            Invalid: A field is malformed.
            Exists: The chosen key is there already.
        """
        check_id(new.user_id, "user_id")
        if new.tenant_id != ANY_TENANT:
            check_tenant(new.tenant_id, "tenant_id")
        permissions = frozenset(new.permissions)
        if not permissions:
            raise Invalid("permissions must not be empty", param="permissions")
        if unknown := sorted(permissions - PERMISSIONS):
            raise Invalid(
                f"unknown permission {unknown[0]!r}; one of {', '.join(sorted(PERMISSIONS))}", param="permissions"
            )
        if len(new.description) > 1000:
            raise Invalid("description must have at most 1,000 characters", param="description")
        now = utc_now()
        if new.expires_at is not None and new.expires_at <= now:
            raise Invalid("expires_at must lie in the future", param="expires_at")
        for name in ("requests_per_minute", "tokens_per_day"):
            if not 0 <= getattr(new, name) <= MOST_BUDGET:
                raise Invalid(f"{name} must be 0..{MOST_BUDGET}", param=name)
        if new.key is not None and not CHOSEN.fullmatch(new.key):
            raise Invalid(
                "api_key must be 16..256 of letters, digits and ._~-, and not start with key_", param="api_key"
            )
        key = new.key or f"mos-{secrets.token_urlsafe(32)}"
        record = ApiKey(
            id=f"key_{secrets.token_hex(8)}",
            user_id=new.user_id,
            tenant_id=new.tenant_id,
            permissions=permissions,
            description=new.description,
            created_at=now,
            expires_at=new.expires_at,
            requests_per_minute=new.requests_per_minute,
            tokens_per_day=new.tokens_per_day,
        )
        await self._record("key.create", record, actor, "intent")
        try:
            await self._keys.create(key, record)
        except Exists:
            await self._record("key.create", record, actor, "failed")
            raise
        await self._record("key.create", record, actor, "ok")
        return key, record

    async def list(self) -> list[ApiKey]:
        """Every key, oldest first."""
        return await self._keys.list()

    async def has_admin(self) -> bool:
        """Whether there is a key with the permission `admin` that has not expired."""
        now = utc_now()
        return any(
            "admin" in record.permissions and (record.expires_at is None or record.expires_at > now)
            for record in await self._keys.list()
        )

    async def revoke(self, key_or_id: str, actor: str) -> ApiKey:
        """Removes a key, at once on every replica.

        Raises:
            NotFound: There is no such key.
        """
        # The store takes keys and ids; a key is never one of the ids listed.
        record = next((each for each in await self._keys.list() if each.id == key_or_id), None)
        record = record or await self._keys.find(key_or_id)
        if record is None:
            raise NotFound("There is no such key", param="key")
        await self._record("key.revoke", record, actor, "intent")
        if await self._keys.revoke(key_or_id) is None:
            await self._record("key.revoke", record, actor, "failed")  # somebody else was first
            raise NotFound("There is no such key", param="key")
        await self._record("key.revoke", record, actor, "ok")
        return record

    async def _record(self, event_type: str, record: ApiKey, actor: str, outcome: str) -> None:
        tenant = record.tenant_id if record.tenant_id != ANY_TENANT else SYSTEM_TENANT
        event = AuditEvent(
            id=uuid7(),
            timestamp=utc_now(),
            event_type=event_type,
            tenant_id=tenant,
            user_id=record.user_id,
            resource=f"key/{record.id}",
            action=event_type,
            outcome=outcome,
            actor=actor,
        )
        await self._audit.append([event])
