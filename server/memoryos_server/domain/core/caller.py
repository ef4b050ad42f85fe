"""Who calls, and whose data a call may touch.

The interceptor `auth` sets the caller; use cases get it handed in. The rules of "whose data" stand here once, for every
domain.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from memoryos_server.domain.core.audit import SYSTEM_TENANT
from memoryos_server.domain.core.faults import Forbidden, Invalid
from memoryos_server.domain.core.text import check_id

DEFAULT_USER = "default_user"
"""The user with auth off when nobody is named. It does not exist with auth on."""

DEFAULT_TENANT = "default"
"""The tenant when nobody names one."""

ANY_TENANT = "*"
"""The tenant of keys that may name any."""

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

PERMISSIONS = frozenset(
    {"chat", "memory", "memory.read", "memory.write", "graph", "multimodal", "security", "wiki", "admin", "act_as"}
)
"""What a key may hold."""


def check_tenant(value: str, param: str) -> str:
    """Gives the tenant's name back.

    Raises:
        Invalid: It is malformed or reserved.
    """
    # The chain of unauthenticated events is nobody's tenant, and dots alone would walk a directory tree.
    if not _TENANT.fullmatch(value) or value in (SYSTEM_TENANT, ".", ".."):
        raise Invalid(f"{param} must have 1..64 letters, digits, dots, hyphens or underscores", param=param)
    return value


@dataclass(frozen=True, slots=True)
class Budget:
    """What a key may use; 0 for any amount.

    Attributes:
        requests_per_minute: Chats within sixty seconds.
        tokens_per_day: Tokens read and written by models on a day, UTC.
    """

    requests_per_minute: int = 0
    tokens_per_day: int = 0

    def __bool__(self) -> bool:
        """Whether it bounds anything."""
        return bool(self.requests_per_minute or self.tokens_per_day)


class Caller(NamedTuple):
    """Who calls. Every call makes one: hence a tuple. What is of the call and not of the key stands last.

    Attributes:
        tenant_id: The tenant of the call.
        user_id: The key's user; None for the anonymous caller.
        permissions: The key's permissions.
        key_id: The key's id for audit and logs, never the key; `anonymous` without one.
        named_user: The user named by `X-User-ID`, or None.
        anonymous: Auth is off.
        any_tenant: The key may name any tenant.
        budget: What the key may use.
        address: The client's address, or "" if not known.
        request_id: The id of the call.
    """

    tenant_id: str
    user_id: str | None = None
    permissions: frozenset[str] = frozenset()
    key_id: str = "anonymous"
    named_user: str | None = None
    anonymous: bool = False
    any_tenant: bool = False
    budget: Budget = Budget()
    address: str = ""
    request_id: str = ""

    def may(self, permission: str) -> bool:
        """Whether the caller holds a permission, by itself or by one that implies it."""
        held = self.permissions
        return permission in held or "admin" in held or (permission.startswith("memory.") and "memory" in held)

    def owner(self, body_user: str = "", *, param: str = "user_id") -> str:
        """The user whose data the call touches.

        Args:
            body_user: The user named in the request, "" if none.
            param: The request's field for it, for errors.

        Raises:
            Invalid: Header and body disagree, the id is malformed, or nobody is named.
            Forbidden: Another user than the key's is named without `act_as` or `admin`.
        """
        if body_user:
            check_id(body_user, param)
        if body_user and self.named_user and body_user != self.named_user:
            raise Invalid("X-User-ID and the request name different users", param=param)
        named = body_user or self.named_user
        if self.anonymous:
            return named or DEFAULT_USER
        if named is None:
            if self.user_id is None:
                raise Invalid("user_id is required: the key names no user", param=param)
            return self.user_id
        if named != self.user_id and not (self.may("act_as") or self.may("admin")):
            raise Forbidden("Acting for another user needs the permission act_as", metadata={"permission": "act_as"})
        return named


_current: ContextVar[Caller] = ContextVar("memoryos_caller")


def caller() -> Caller:
    """The caller of the present call.

    Raises:
        LookupError: There is no call, or its method is public and nobody was looked up.
    """
    return _current.get()


def set_caller(value: Caller) -> None:
    """Sets the caller of the present call."""
    _current.set(value)
