"""API keys: made, listed, rotated, revoked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent, draft
from memoryos_server.domain.core.caller import ANY_TENANT, DEFAULT_TENANT, PERMISSIONS, Caller, check_tenant
from memoryos_server.domain.core.faults import BackendDown, Fault, Forbidden, Invalid, NotFound, Stale
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.paging import place_of, size_of, token_of
from memoryos_server.domain.core.text import check_id
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey, AuditLog, KeyStore

MOST_BUDGET = 10**12
"""The largest budget that is still counted exactly, with room to spare."""

DEFAULT_OVERLAP = 86_400
MOST_OVERLAP = 30 * 86_400
"""How long, in seconds, a rotated key goes on if nothing is said, and at most."""

CHOSEN = re.compile(r"(?!key_)[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to make.

    Attributes:
        user_id: Its user, 1..256 characters.
        tenant_id: Its tenant; `*` may name any, "" is the tenant of who makes it.
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
    requests_per_minute: float = 0
    tokens_per_day: float = 0
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Keeper:
    """Who keeps keys.

    Attributes:
        actor: What audit shows of him.
        tenant_id: His tenant, whose keys he reaches.
        every: He reaches those of every tenant, and those of all tenants.
        address: The client's address, or "".
        request_id: The id of the call, or "".
    """

    actor: str
    tenant_id: str = DEFAULT_TENANT
    every: bool = False
    address: str = ""
    request_id: str = ""

    @classmethod
    def of(cls, who: Caller) -> Keeper:
        """The caller, whose permission is checked."""
        return cls(who.key_id, who.tenant_id, who.any_tenant, who.address, who.request_id)

    def tenant(self, named: str) -> str:
        """The tenant named, that of the call for "", `*` for all.

        Raises:
            Invalid: It is malformed.
            Forbidden: It is not his.
        """
        if named in ("", self.tenant_id):
            return self.tenant_id
        if named != ANY_TENANT:
            check_tenant(named, "tenant_id")
        if not self.every:
            raise Forbidden("Only a key of all tenants may name another tenant", param="tenant_id")
        return named

    def reaches(self, record: ApiKey | None) -> ApiKey:
        """The key, if he may see and change it.

        Raises:
            NotFound: There is none, or it is another tenant's.
        """
        if record is None or not (self.every or record.tenant_id == self.tenant_id):
            raise NotFound("There is no such key", param="key")
        return record


class KeyService:
    """Keeps API keys. Every change is recorded with intent before and outcome after.

    Args:
        keys: Where they are kept.
        audit: Where changes are recorded. What cannot be recorded is not done.
        later: Has an outcome recorded as soon as that can be, which could not be at once; None: the change, though done,
            fails.
        spare_admin: There is an admin key besides those kept.
    """

    def __init__(
        self,
        keys: KeyStore,
        audit: AuditLog,
        later: Callable[[AuditEvent], None] | None = None,
        *,
        spare_admin: bool = False,
    ) -> None:
        self._keys = keys
        self._audit = audit
        self._later = later
        self._spare_admin = spare_admin

    async def create(self, new: NewKey, by: Keeper) -> tuple[str, ApiKey]:
        """The key, shown this once, and its record.

        Raises:
            Invalid: A field is malformed.
            Forbidden: It is for a tenant that is not his.
            Exists: The chosen key is there already.
            BackendDown: It is not made, unless only the outcome could not be recorded.
        """
        now = utc_now()
        tenant_id = by.tenant(new.tenant_id)
        _check(new, now)
        key = new.key or _strong()
        record = ApiKey(
            id=_id(),
            user_id=new.user_id,
            tenant_id=tenant_id,
            permissions=frozenset(new.permissions),
            description=new.description,
            created_at=now,
            expires_at=new.expires_at,
            requests_per_minute=int(new.requests_per_minute),
            tokens_per_day=int(new.tokens_per_day),
        )
        await self._record("key.create", record, by, "intent")
        try:
            await self._keys.create(key, record)
        except Fault as fault:
            await self._record("key.create", record, by, "failed", fault.reason)
            raise
        await self._record("key.create", record, by, "ok")
        return key, record

    async def listed(self, by: Keeper, tenant_id: str = "", user_id: str = "") -> list[ApiKey]:
        """Every key of a tenant, "" for that of the call, `*` for all; oldest first.

        Raises:
            Invalid: A name is malformed.
            Forbidden: It is not his.
        """
        tenant = by.tenant(tenant_id)
        if user_id:
            check_id(user_id, "user_id")
        return [
            key
            for key in await self._keys.list()
            if tenant in (ANY_TENANT, key.tenant_id) and user_id in ("", key.user_id)
        ]

    async def page(
        self,
        by: Keeper,
        *,
        tenant_id: str = "",
        user_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
    ) -> tuple[list[ApiKey], str]:
        """A page of `listed`, and the token of the next.

        Raises:
            Invalid: A name, the page size or the token is malformed.
            Forbidden: The tenant is not his.
        """
        size, after = size_of(page_size), place_of(page_token, 2)
        found = await self.listed(by, tenant_id, user_id)
        if after is not None:
            found = [key for key in found if _place(key) > after]
        return found[:size], token_of(_place(found[size - 1])) if len(found) > size else ""

    async def has_admin(self) -> bool:
        """Whether there is a key with the permission `admin` that has not expired."""
        return bool(_admins(await self._keys.list()))

    async def revoke(self, key_or_id: str, by: Keeper, *, keep_admin: bool = True) -> ApiKey:
        """Removes a key, at once on every replica.

        Args:
            key_or_id: The key, or its id.
            by: Who does.
            keep_admin: The last admin key of its tenant stays, and the last of all tenants.

        Raises:
            NotFound: There is no such key.
            Stale: It is the last admin key.
            BackendDown: It is not removed, unless only the outcome could not be recorded.
        """
        record = by.reaches(await self._keys.look(key_or_id))
        others: list[str] = []
        if keep_admin and not self._spare_admin and _admins([record]):
            others = await self._other_admins(record)
            if not others:
                raise _last_admin()
        await self._record("key.revoke", record, by, "intent")
        try:
            if await self._keys.revoke(record.id, while_there=others) is None:
                raise NotFound("There is no such key", param="key")  # somebody else was first
        except Fault as fault:
            await self._record("key.revoke", record, by, "failed", fault.reason)
            raise _last_admin() if isinstance(fault, Stale) else fault from None
        await self._record("key.revoke", record, by, "ok")
        return record

    async def rotate(
        self,
        key_or_id: str,
        by: Keeper,
        overlap_seconds: int | None = None,
        expires_at: datetime | None = None,
        *,
        keep_admin: bool = True,
    ) -> tuple[str, ApiKey, ApiKey]:
        """A new key with the rights of an old one: the key, shown this once, its record, and the old one's.

        Args:
            key_or_id: The old key, or its id.
            by: Who does.
            overlap_seconds: How long the old key goes on, 0..30 days; None: a day.
            expires_at: When the new key ends; None: when the old one would have.
            keep_admin: The last admin key, as `revoke` has it, gets no earlier end than it has.

        Raises:
            Invalid: A field is out of range, or the old key has expired.
            NotFound: There is no such key.
            Stale: The old key was changed meanwhile, or it is the last admin key.
            BackendDown: Nothing is changed, unless only the outcome could not be recorded.
        """
        seconds = DEFAULT_OVERLAP if overlap_seconds is None else overlap_seconds
        if not 0 <= seconds <= MOST_OVERLAP:
            raise Invalid(f"overlap_seconds must be 0..{MOST_OVERLAP}", param="overlap_seconds")
        now = utc_now()
        if expires_at is not None and expires_at <= now:
            raise Invalid("expires_at must lie in the future", param="expires_at")
        old = by.reaches(await self._keys.look(key_or_id))
        if _over(old, now):
            raise Invalid("The key has expired: make a new one", param="key")
        sooner = expires_at is not None and (old.expires_at is None or expires_at < old.expires_at)
        if sooner and keep_admin and not self._spare_admin and _admins([old]) and not await self._other_admins(old):
            raise _last_admin()
        ends = min(now + timedelta(seconds=seconds), old.expires_at or datetime.max.replace(tzinfo=now.tzinfo))
        key = _strong()
        record = replace(old, id=_id(), created_at=now, expires_at=expires_at or old.expires_at, last_used_at=None)
        await self._record("key.rotate", old, by, "intent", record.id)
        try:
            await self._keys.rotate(old, ends if seconds else None, key, record)
        except Fault as fault:
            await self._record("key.rotate", old, by, "failed", fault.reason)
            raise
        await self._record("key.rotate", old, by, "ok", record.id)
        return key, record, replace(old, expires_at=ends)

    async def _other_admins(self, record: ApiKey) -> list[str]:
        """The ids of the admin keys that reach what one does."""
        reaching = {record.tenant_id, ANY_TENANT}
        return _admins([one for one in await self._keys.list() if one.id != record.id and one.tenant_id in reaching])

    async def _record(self, event_type: str, record: ApiKey, by: Keeper, outcome: str, details: str = "") -> None:
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
            actor=by.actor,
            address=by.address,
            request_id=by.request_id,
            details=details,
        )
        try:
            await self._audit.append([event])
        except BackendDown:
            if outcome == "intent" or self._later is None:
                raise
            self._later(event)
        if (present := draft()) is not None:
            present.taken = True  # what is recorded here says more than the call's own event


def _check(new: NewKey, now: datetime) -> None:
    check_id(new.user_id, "user_id")
    if not new.permissions:
        raise Invalid("permissions must not be empty", param="permissions")
    for index, permission in enumerate(new.permissions):
        if permission not in PERMISSIONS:
            # What was sent is not repeated: it may be a key, mistaken for a permission.
            known = ", ".join(sorted(PERMISSIONS))
            raise Invalid(f"permissions[{index}] must be one of {known}", param="permissions")
    if len(new.description) > 1000:
        raise Invalid("description must have at most 1,000 characters", param="description")
    if new.expires_at is not None and new.expires_at <= now:
        raise Invalid("expires_at must lie in the future", param="expires_at")
    for name in ("requests_per_minute", "tokens_per_day"):
        value = getattr(new, name)
        if not 0 <= value <= MOST_BUDGET or value != int(value):
            raise Invalid(f"{name} must be a whole number, 0..{MOST_BUDGET}", param=name)
    if new.key is not None and not CHOSEN.fullmatch(new.key):
        raise Invalid("api_key must be 16..256 of letters, digits and ._~-, and not start with key_", param="api_key")


def _strong() -> str:
    return f"mos-{secrets.token_urlsafe(32)}"


def _id() -> str:
    return f"key_{secrets.token_hex(8)}"


def _over(key: ApiKey, now: datetime) -> bool:
    return key.expires_at is not None and key.expires_at <= now


def _admins(keys: Sequence[ApiKey]) -> list[str]:
    """The ids of those that may do everything, now."""
    now = utc_now()
    return [key.id for key in keys if "admin" in key.permissions and not _over(key, now)]


def _last_admin() -> Stale:
    message = "This is the last key with the permission admin: make another one first"
    return Stale(message, reason="last_admin_key", param="key")


def _place(key: ApiKey) -> list[str]:
    return [key.created_at.isoformat(timespec="microseconds"), key.id]
