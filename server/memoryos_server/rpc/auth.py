"""Who calls: a key, or nobody, becomes a `Caller`.

What a caller may touch is the domain's business (`Caller.owner`); whether he may call the method at all is decided here,
by the permission in the proto.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from memoryos_server.domain.core.caller import (
    ANY_TENANT,
    DEFAULT_TENANT,
    PERMISSIONS,
    Budget,
    Caller,
    check_tenant,
    set_caller,
)
from memoryos_server.domain.core.faults import Forbidden, Invalid, Unauthenticated
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.text import check_id
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.defense.places import address_of
from memoryos_server.domain.ports import ApiKey, ApiKeys
from memoryos_server.rpc.wrap import Call

_log = Sparing(logging.getLogger(__name__))

ADMIN_KEY_ID = "admin_key"
"""What audit and logs show for the key of the settings, which is in no store."""

_MAX_KEY = 512
_MOST_PROVEN = 4096
_MOST_HEADERS = 2048


_Headers = tuple[str | None, str | None, str | None]
"""`authorization`, `x-tenant-id`, `x-user-id`."""


class _Proven(NamedTuple):
    """Who calls with certain headers.

    Attributes:
        key: The key.
        record: The record of the key, as long as it is this one; None for the key of the settings.
        caller: The caller, but for address and request id.
    """

    key: str
    record: ApiKey | None
    caller: Caller


class Auth:
    """The interceptor `auth`."""

    def __init__(
        self,
        *,
        enabled: bool,
        admin_key: str,
        keys: ApiKeys,
        bridge_secret: str,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keeps who may call.

        Args:
            enabled: Whether calls need a key.
            admin_key: A key with every permission in every tenant; "" for none.
            keys: The keys of the store.
            bridge_secret: What a bridge must know for its word on client addresses to be taken; "" trusts none.
            now: The clock, for expiry.
        """
        self._enabled = enabled
        self._admin_key = _digest(admin_key) if admin_key else None
        self._keys = keys
        self._bridge_secret = _digest(bridge_secret) if bridge_secret else None
        self._now = now
        self._proven: dict[_Headers, _Proven] = {}
        self._proven_bridges: set[str] = set()

    async def __call__(self, call: Call) -> None:
        """Sets the caller of a call.

        Raises:
            Unauthenticated: No key, an unknown one, or (reason `key_expired`) one past its end.
            Forbidden: The key lacks the method's permission, is of another tenant, or of one where the method is every tenant's.
            Invalid: `x-tenant-id` or `x-user-id` is malformed.
            BackendDown: The key is not known here and the store that would know it is down.
        """
        call.address = call.address or self.address(call)
        if not self.recall(call):
            call.caller = await self._caller(call)
        self.admit(call)

    def recall(self, call: Call) -> bool:
        """Sets the caller of a call whose like was looked up before, if no store need be asked; whether it did.

        Whether he may call the method is not asked here, but by `admit`.
        """
        if not self._proven or call.method.permission == "public":
            return False
        headers = _headers(call.metadata)
        proven = self._proven.get(headers)
        if proven is None:
            return False
        key, record, caller = proven
        if record is not None and (self._keys.held(key) is not record or self._has_ended(record)):
            del self._proven[headers]
            return False
        # What `_replace` would do in three times the time: every call comes by here.
        call.caller = Caller._make((*caller[:-2], call.address, call.request_id))
        return True

    def admit(self, call: Call) -> None:
        """Lets the caller of a call in, or not.

        Raises:
            Forbidden: The key lacks the method's permission, or is of one tenant where the method is every tenant's.
        """
        caller = call.caller
        if caller is None:
            raise AssertionError("`admit` comes before anybody was looked up")
        set_caller(caller)
        permission = call.method.permission
        if permission != "public" and not caller.may(permission):
            raise Forbidden(f"This key lacks the permission {permission}", metadata={"permission": permission})
        if call.method.whose == "store" and not caller.any_tenant:
            raise Forbidden("Only a key of all tenants may do this")

    def address(self, call: Call) -> str:
        """The client's IP address: the peer's, or the one a bridge with the right secret names; "" if there is none."""
        return self.address_of(call.metadata, call.context.peer)

    def address_of(self, metadata: Mapping[str, str], peer: Callable[[], str]) -> str:
        """As `address`, of what a client sent; `peer` gives gRPC's form of its peer, which costs more than all the rest."""
        if named := metadata.get("memoryos-client-address", ""):
            if self._is_bridge(metadata.get("memoryos-bridge-secret", "")):
                return _shown(named)
            _log.warning(
                "a client's address is not believed, and the caller's own stands for it: whoever names it does not know "
                "bridge.secret as it is here; set the same for server and bridge"
            )
        return peer_address(peer())

    async def knows(self, metadata: Mapping[str, str]) -> bool:
        """Whether a call brings a key that is valid now, for whatever it may do.

        Raises:
            BackendDown: The key is not known here and the store that would know it is down.
        """
        if not self._enabled:
            return True
        try:
            key = _bearer(metadata.get("authorization"))
        except Unauthenticated:
            return False
        if self._is_admin(key):
            return True
        record = await self._keys.find(key) if len(key) <= _MAX_KEY else None
        return record is not None and not self._has_ended(record)

    def seen(self, metadata: Mapping[str, str]) -> bool:
        """As `knows`, as far as can be told at once: of a key that was not seen here lately it says no."""
        if not self._enabled:
            return True
        try:
            key = _bearer(metadata.get("authorization"))
        except Unauthenticated:
            return False
        if self._is_admin(key):
            return True
        record = self._keys.seen(key) if len(key) <= _MAX_KEY else None
        return record is not None and not self._has_ended(record)

    def _is_admin(self, key: str) -> bool:
        return self._admin_key is not None and hmac.compare_digest(_digest(key), self._admin_key)

    def _has_ended(self, record: ApiKey) -> bool:
        return record.expires_at is not None and record.expires_at <= self._now()

    def _is_bridge(self, secret: str) -> bool:
        # Found by its hash, so that how long it takes tells nothing of one that is not there.
        if secret in self._proven_bridges:
            return True
        if self._bridge_secret is None or not hmac.compare_digest(_digest(secret), self._bridge_secret):
            return False
        self._proven_bridges.add(secret)
        return True

    async def _caller(self, call: Call) -> Caller:
        # Probes must be answered whatever headers a proxy adds: public methods read none.
        public = call.method.permission == "public"
        if not self._enabled or public:
            tenant, named_user = (None, None) if public else _named(call.metadata)
            return Caller(
                tenant_id=tenant or DEFAULT_TENANT,
                permissions=frozenset() if self._enabled else PERMISSIONS,
                named_user=named_user,
                anonymous=not self._enabled,
                any_tenant=not self._enabled,
                address=call.address,
                request_id=call.request_id,
            )
        # The key before all else: whoever has none is told so, whatever else is wrong with the call, and is counted for it.
        key = _bearer(call.metadata.get("authorization"))
        if self._is_admin(key):
            tenant, named_user = _named(call.metadata)
            caller = Caller(
                tenant_id=tenant or DEFAULT_TENANT,
                permissions=frozenset({"admin"}),
                key_id=ADMIN_KEY_ID,
                named_user=named_user,
                any_tenant=True,
                address=call.address,
                request_id=call.request_id,
            )
            return self._prove(call, key, None, caller)
        record = await self._keys.find(key) if len(key) <= _MAX_KEY else None
        if record is None:
            raise Unauthenticated("This API key is not known")
        # Set at once, so that what is refused below is recorded under the key's own tenant.
        call.caller = caller = _from_record(record, call)
        if self._has_ended(record):
            raise Unauthenticated("This API key has expired", reason="key_expired")
        tenant, named_user = _named(call.metadata)
        if named_user is not None:
            call.caller = caller = caller._replace(named_user=named_user)
        if record.tenant_id == ANY_TENANT:
            caller = caller._replace(tenant_id=tenant or DEFAULT_TENANT)
        elif tenant is not None and tenant != record.tenant_id:
            raise Forbidden("This key belongs to another tenant", param="X-Tenant-ID")
        return self._prove(call, key, record, caller)

    def _prove(self, call: Call, key: str, record: ApiKey | None, caller: Caller) -> Caller:
        """Keeps for `recall` who calls, and gives it back."""
        headers = _headers(call.metadata)
        if sum(map(len, filter(None, headers))) <= _MOST_HEADERS:
            if len(self._proven) >= _MOST_PROVEN:
                del self._proven[next(iter(self._proven))]
            self._proven[headers] = _Proven(key, record, caller)
        return caller


@lru_cache(maxsize=16_384)
def peer_address(peer: str) -> str:
    """The IP address in gRPC's form of a peer (`ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`); "" for a unix socket."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return _shown(unquote_to_bytes(rest).decode("ascii", "replace").rpartition(":")[0].strip("[]"))


@lru_cache(maxsize=16_384)
def _shown(text: str) -> str:
    """An address in its one form: an IPv4 address as such, however it was written; "" if it is none."""
    try:
        return str(address_of(text))
    except ValueError:
        return ""


def _from_record(record: ApiKey, call: Call) -> Caller:
    tenant = DEFAULT_TENANT if record.tenant_id == ANY_TENANT else record.tenant_id
    return Caller(
        tenant_id=tenant,
        user_id=record.user_id,
        permissions=record.permissions,
        key_id=record.id,
        any_tenant=record.tenant_id == ANY_TENANT,
        budget=Budget(record.requests_per_minute, record.tokens_per_day),
        address=call.address,
        request_id=call.request_id,
    )


def _headers(metadata: Mapping[str, str]) -> _Headers:
    """What says who calls. Only what was proven is kept by it, and found by its hash: how long that takes tells nothing of a key."""
    return metadata.get("authorization"), metadata.get("x-tenant-id"), metadata.get("x-user-id")


def _digest(secret: str) -> bytes:
    """Equal lengths, so that comparing takes the same time whatever is sent."""
    return hashlib.blake2b(secret.encode("utf-8", "surrogateescape"), digest_size=32).digest()


def _bearer(value: str | None) -> str:
    scheme, _, key = (value or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated("An API key is needed: `Authorization: Bearer <key>`")
    return key


def _named(metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The tenant and the user that a call names."""
    return _tenant(metadata.get("x-tenant-id")), _named_user(metadata.get("x-user-id"))


def _tenant(value: str | None) -> str | None:
    return None if value is None else check_tenant(value, "X-Tenant-ID")


def _named_user(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return check_id(unquote_to_bytes(value).decode(), "X-User-ID")
    except UnicodeDecodeError:
        raise Invalid("X-User-ID must be percent-encoded UTF-8", param="X-User-ID") from None
