"""AdminService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import admin_service_pb2 as pb
from memoryos_server.domain.admin.keys import Keeper, KeyService, NewKey
from memoryos_server.domain.admin.users import User, UserService
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.ports import ApiKey
from memoryos_server.rpc.convert import aware, optional, stamp

_Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer:
    """Serves memoryos.v1.AdminService."""

    def __init__(self, keys: KeyService, users: UserService) -> None:
        self._keys = keys
        self._users = users

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, _context: _Context) -> pb.CreateApiKeyResponse:
        """Makes a key."""
        new = NewKey(
            user_id=request.user_id,
            tenant_id=request.tenant_id,
            permissions=list(request.permissions),
            description=request.description,
            expires_at=aware(request, "expires_at"),
            requests_per_minute=request.requests_per_minute,
            tokens_per_day=request.tokens_per_day,
            key=request.api_key or None,
        )
        key, record = await self._keys.create(new, Keeper.of(caller()))
        return pb.CreateApiKeyResponse(api_key=key, id=record.id, key=_key(record))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, _context: _Context) -> pb.ListApiKeysResponse:
        """Lists keys."""
        found, token = await self._keys.page(
            Keeper.of(caller()),
            tenant_id=request.tenant_id,
            user_id=request.user_id,
            page_size=optional(request, "page_size"),
            page_token=request.page_token,
        )
        return pb.ListApiKeysResponse(keys=[_key(one) for one in found], next_page_token=token)

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, _context: _Context) -> pb.DeleteApiKeyResponse:
        """Ends a key."""
        record = await self._keys.revoke(request.key, Keeper.of(caller()))
        return pb.DeleteApiKeyResponse(id=record.id)

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, _context: _Context) -> pb.RotateApiKeyResponse:
        """Replaces a key."""
        key, record, old = await self._keys.rotate(
            request.key, Keeper.of(caller()), optional(request, "overlap_seconds"), aware(request, "expires_at")
        )
        ends = stamp(old.expires_at) if old.expires_at else None
        return pb.RotateApiKeyResponse(api_key=key, id=record.id, key=_key(record), old_id=old.id, old_expires_at=ends)

    async def ListUsers(self, request: pb.ListUsersRequest, _context: _Context) -> pb.ListUsersResponse:
        """Lists users."""
        found, token = await self._users.page(
            Keeper.of(caller()),
            tenant_id=request.tenant_id,
            page_size=optional(request, "page_size"),
            page_token=request.page_token,
        )
        return pb.ListUsersResponse(users=[_user(one) for one in found], next_page_token=token)


def _key(record: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        id=record.id,
        user_id=record.user_id,
        tenant_id=record.tenant_id,
        permissions=sorted(record.permissions),
        description=record.description,
        created_at=stamp(record.created_at),
        expires_at=stamp(record.expires_at) if record.expires_at else None,
        last_used_at=stamp(record.last_used_at) if record.last_used_at else None,
        requests_per_minute=min(record.requests_per_minute, 2**32 - 1),
        tokens_per_day=record.tokens_per_day,
    )


def _user(one: User) -> pb.User:
    return pb.User(
        user_id=one.user_id,
        key_count=one.key_count,
        has_memory=one.has_memory,
        last_used_at=stamp(one.last_used_at) if one.last_used_at else None,
    )
