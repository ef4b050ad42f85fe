"""API keys: made, listed, rotated and ended, for both clients. It takes a key with `admin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.model import stamp, when
from memoryos.v1 import admin_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; never the key.

    Attributes:
        id: `key_` and 16 hex digits.
        user_id: The key's user.
        tenant_id: The key's tenant; `*` may name any.
        permissions: What it may do, sorted.
        description: For people.
        created_at: When it was made, UTC.
        expires_at: When it ends, or None.
        last_used_at: When it was last used, at most a minute late, or None.
        requests_per_minute: How many chats it may have within sixty seconds; 0: any number.
        tokens_per_day: How many tokens its chats may cost on a day, UTC; 0: any number.
    """

    id: str
    user_id: str
    tenant_id: str
    permissions: tuple[str, ...]
    description: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    requests_per_minute: int
    tokens_per_day: int


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new key: the key itself, shown this once, and what is known of it."""

    api_key: str = field(repr=False)
    key: ApiKey


@dataclass(frozen=True, slots=True)
class RotatedKey:
    """A new key in an old one's place, which ends at `old_expires_at`; the key itself is shown this once."""

    api_key: str = field(repr=False)
    key: ApiKey
    old_id: str
    old_expires_at: datetime


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of keys, oldest first; `next_page_token` names the next page, "" at the end."""

    keys: tuple[ApiKey, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class User:
    """Somebody of a tenant.

    Attributes:
        user_id: The user's id.
        key_count: The number of keys, expired ones included.
        has_memory: Something was ever kept, and not erased since.
        last_used_at: When one of the keys was last used, or None.
    """

    user_id: str
    key_count: int
    has_memory: bool
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class UserPage:
    """A page of users, those with keys first; it may be short although `next_page_token` names another."""

    users: tuple[User, ...]
    next_page_token: str


class Keys:
    """`Client.keys`. Every method takes `timeout` as the client's own do; `tenant_id` "" is the tenant of the call."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def create(
        self,
        user_id: str,
        permissions: Sequence[str],
        *,
        description: str = "",
        tenant_id: str = "",
        expires_at: datetime | None = None,
        requests_per_minute: int = 0,
        tokens_per_day: int = 0,
        api_key: str = "",
        timeout: float | None = None,
    ) -> MadeKey:
        """Makes a key.

        Args:
            user_id: Its user, 1..256 characters.
            permissions: What it may do, such as `chat`, `memory`, `security`, `admin`, `act_as`.
            description: For people, at most 1,000 characters.
            tenant_id: Its tenant; another than the caller's, or `*`, only a key of all tenants may name.
            expires_at: When it ends, with a zone; None: never.
            requests_per_minute: How many chats it may have within sixty seconds; 0: any number.
            tokens_per_day: How many tokens its chats may cost on a day; 0: any number.
            api_key: A chosen key, 16..256 of letters, digits and `._~-`; "": a strong one is made.
            timeout: Seconds; default: the client's.
        """
        request = _create(
            user_id,
            permissions,
            description,
            tenant_id,
            expires_at,
            requests_per_minute,
            tokens_per_day,
            api_key,
        )
        return _made(self._client.call("CreateApiKey", request, timeout=timeout))

    def list(
        self,
        *,
        of_user: str = "",
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> KeyPage:
        """A page of keys, of one user or of all.

        Args:
            of_user: Whose keys; "": everybody's.
            tenant_id: Whose keys; `*` for those of every tenant.
            page_size: 1..100; default 100.
            page_token: `next_page_token` of the page before; "": the first page.
            timeout: Seconds; default: the client's.
        """
        request = _list(of_user, tenant_id, page_size, page_token)
        return _page(self._client.call("ListApiKeys", request, timeout=timeout))

    def rotate(
        self,
        key: str,
        *,
        overlap_seconds: int | None = None,
        expires_at: datetime | None = None,
        timeout: float | None = None,
    ) -> RotatedKey:
        """Makes a new key with the rights of an old one.

        Args:
            key: The old key's id.
            overlap_seconds: How long the old key goes on, 0..2592000; None: a day.
            expires_at: When the new key ends, with a zone; None: when the old one would have.
            timeout: Seconds; default: the client's.
        """
        request = _rotate(key, overlap_seconds, expires_at)
        return _rotated(self._client.call("RotateApiKey", request, timeout=timeout))

    def delete(self, key: str, *, timeout: float | None = None) -> str:
        """Ends a key at once, by its id or by itself, and gives its id."""
        return _deleted(self._client.call("DeleteApiKey", pb.DeleteApiKeyRequest(key=key), timeout=timeout))

    def users(
        self,
        *,
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> UserPage:
        """A page of a tenant's users: those with keys, then those of whom something is kept."""
        request = pb.ListUsersRequest(tenant_id=tenant_id, page_size=page_size, page_token=page_token)
        return _users(self._client.call("ListUsers", request, timeout=timeout))


class AsyncKeys:
    """`AsyncClient.keys`; as `Keys`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def create(
        self,
        user_id: str,
        permissions: Sequence[str],
        *,
        description: str = "",
        tenant_id: str = "",
        expires_at: datetime | None = None,
        requests_per_minute: int = 0,
        tokens_per_day: int = 0,
        api_key: str = "",
        timeout: float | None = None,
    ) -> MadeKey:
        """Makes a key."""
        request = _create(
            user_id,
            permissions,
            description,
            tenant_id,
            expires_at,
            requests_per_minute,
            tokens_per_day,
            api_key,
        )
        return _made(await self._client.call("CreateApiKey", request, timeout=timeout))

    async def list(
        self,
        *,
        of_user: str = "",
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> KeyPage:
        """A page of keys, of one user or of all."""
        request = _list(of_user, tenant_id, page_size, page_token)
        return _page(await self._client.call("ListApiKeys", request, timeout=timeout))

    async def rotate(
        self,
        key: str,
        *,
        overlap_seconds: int | None = None,
        expires_at: datetime | None = None,
        timeout: float | None = None,
    ) -> RotatedKey:
        """Makes a new key with the rights of an old one."""
        request = _rotate(key, overlap_seconds, expires_at)
        return _rotated(await self._client.call("RotateApiKey", request, timeout=timeout))

    async def delete(self, key: str, *, timeout: float | None = None) -> str:
        """Ends a key at once, by its id or by itself, and gives its id."""
        return _deleted(await self._client.call("DeleteApiKey", pb.DeleteApiKeyRequest(key=key), timeout=timeout))

    async def users(
        self,
        *,
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> UserPage:
        """A page of a tenant's users."""
        request = pb.ListUsersRequest(tenant_id=tenant_id, page_size=page_size, page_token=page_token)
        return _users(await self._client.call("ListUsers", request, timeout=timeout))


def _create(
    user_id: str,
    permissions: Sequence[str],
    description: str,
    tenant_id: str,
    expires_at: datetime | None,
    requests_per_minute: int,
    tokens_per_day: int,
    api_key: str,
) -> pb.CreateApiKeyRequest:
    return pb.CreateApiKeyRequest(
        api_key=api_key,
        user_id=user_id,
        description=description,
        permissions=permissions,
        tenant_id=tenant_id,
        expires_at=None if expires_at is None else stamp(expires_at),
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
    )


def _list(of_user: str, tenant_id: str, page_size: int | None, page_token: str) -> pb.ListApiKeysRequest:
    return pb.ListApiKeysRequest(tenant_id=tenant_id, user_id=of_user, page_size=page_size, page_token=page_token)


def _rotate(key: str, overlap_seconds: int | None, expires_at: datetime | None) -> pb.RotateApiKeyRequest:
    ends = None if expires_at is None else stamp(expires_at)
    return pb.RotateApiKeyRequest(key=key, overlap_seconds=overlap_seconds, expires_at=ends)


def _made(message: Message) -> MadeKey:
    made = cast(pb.CreateApiKeyResponse, message)
    return MadeKey(made.api_key, _key(made.key))


def _rotated(message: Message) -> RotatedKey:
    made = cast(pb.RotateApiKeyResponse, message)
    return RotatedKey(made.api_key, _key(made.key), made.old_id, when(made.old_expires_at))


def _deleted(message: Message) -> str:
    return cast(pb.DeleteApiKeyResponse, message).id


def _page(message: Message) -> KeyPage:
    page = cast(pb.ListApiKeysResponse, message)
    return KeyPage(tuple(map(_key, page.keys)), page.next_page_token)


def _users(message: Message) -> UserPage:
    page = cast(pb.ListUsersResponse, message)
    users = tuple(
        User(
            one.user_id,
            one.key_count,
            one.has_memory,
            when(one.last_used_at) if one.HasField("last_used_at") else None,
        )
        for one in page.users
    )
    return UserPage(users, page.next_page_token)


def _key(key: pb.ApiKey) -> ApiKey:
    return ApiKey(
        id=key.id,
        user_id=key.user_id,
        tenant_id=key.tenant_id,
        permissions=tuple(key.permissions),
        description=key.description,
        created_at=when(key.created_at),
        expires_at=when(key.expires_at) if key.HasField("expires_at") else None,
        last_used_at=when(key.last_used_at) if key.HasField("last_used_at") else None,
        requests_per_minute=key.requests_per_minute,
        tokens_per_day=int(key.tokens_per_day),
    )
