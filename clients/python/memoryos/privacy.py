"""A person's data handed over whole, and erased, for both clients. Of oneself it takes a key with `security`, of others `admin`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message

from memoryos.model import when
from memoryos.v1 import privacy_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class Erased:
    """How far an erasure came.

    Attributes:
        status: `ok`: everything is erased and was seen to be gone; `partial`: the rest is tried again until it is.
        errors: What is left, one line per category.
        certificate_id: Names the record of the erasure.
    """

    status: str
    errors: tuple[str, ...]
    certificate_id: str


@dataclass(frozen=True, slots=True)
class ErasedCategory:
    """What became of one category; `left` is None if it could not be looked at."""

    category: str
    removed: int
    left: int | None
    error: str


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """What became of the files of one store: `rewritten`, and when, or `not_ours`."""

    store: str
    state: str
    rewritten_at: datetime | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What became of an erasure. It holds no name.

    Attributes:
        id: Names it.
        status: `erasing` until it was tried once, then `partial` while something is left, and `ok`.
        tenant_id: The tenant.
        user_hash: The keyed hash of tenant and user.
        requested_by: The id of the key that asked for it.
        requested_at: Since when nothing of before can be read, UTC.
        attempts: How often it was tried.
        errors: What is left, one line per category.
        categories: What was removed.
        verified_at: When everything was last seen to be gone, or None.
        files: The stores' files; empty until they are rewritten.
        compacted_at: When the last of our own files was rewritten, or None.
    """

    id: str
    status: str
    tenant_id: str
    user_hash: str
    requested_by: str
    requested_at: datetime
    attempts: int
    errors: tuple[str, ...]
    categories: tuple[ErasedCategory, ...]
    verified_at: datetime | None
    files: tuple[StoreFiles, ...]
    compacted_at: datetime | None


class Privacy:
    """`Client.privacy`. Every method takes `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def export(self, *, user_id: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Everything that is kept of a user: a list for each category, `profile`, and `manifest`."""
        return _document("".join(self.export_text(user_id=user_id, timeout=timeout)))

    def export_text(self, *, user_id: str | None = None, timeout: float | None = None) -> Iterator[str]:
        """The same as JSON text in pieces, of any size; whole only if the iteration ends by itself."""
        request = pb.ExportUserDataRequest()
        for message in self._client.stream("ExportUserData", request, user_id=user_id, timeout=timeout):
            yield _piece(message)

    def delete(self, *, user_id: str, timeout: float | None = None) -> Erased:
        """Erases everything that is kept of a user, for good; `user_id` says whose in any case."""
        request = pb.DeleteUserDataRequest(user_id=user_id)
        return _erased(self._client.call("DeleteUserData", request, user_id=user_id, timeout=timeout))

    def certificate(self, certificate_id: str, *, timeout: float | None = None) -> Certificate:
        """What became of an erasure."""
        request = pb.GetErasureCertificateRequest(id=certificate_id)
        return _certificate(self._client.call("GetErasureCertificate", request, timeout=timeout))


class AsyncPrivacy:
    """`AsyncClient.privacy`; as `Privacy`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def export(self, *, user_id: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Everything that is kept of a user."""
        return _document("".join([piece async for piece in self.export_text(user_id=user_id, timeout=timeout)]))

    async def export_text(self, *, user_id: str | None = None, timeout: float | None = None) -> AsyncIterator[str]:
        """The same as JSON text in pieces."""
        request = pb.ExportUserDataRequest()
        async for message in self._client.stream("ExportUserData", request, user_id=user_id, timeout=timeout):
            yield _piece(message)

    async def delete(self, *, user_id: str, timeout: float | None = None) -> Erased:
        """Erases everything that is kept of a user, for good."""
        request = pb.DeleteUserDataRequest(user_id=user_id)
        return _erased(await self._client.call("DeleteUserData", request, user_id=user_id, timeout=timeout))

    async def certificate(self, certificate_id: str, *, timeout: float | None = None) -> Certificate:
        """What became of an erasure."""
        request = pb.GetErasureCertificateRequest(id=certificate_id)
        return _certificate(await self._client.call("GetErasureCertificate", request, timeout=timeout))


def _piece(message: Message) -> str:
    return cast(pb.ExportUserDataResponse, message).export_json


def _document(text: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(text))


def _erased(message: Message) -> Erased:
    done = cast(pb.DeleteUserDataResponse, message)
    return Erased(done.status, tuple(done.errors), done.certificate_id)


def _certificate(message: Message) -> Certificate:
    made = cast(pb.GetErasureCertificateResponse, message).certificate
    return Certificate(
        id=made.id,
        status=made.status,
        tenant_id=made.tenant_id,
        user_hash=made.user_hash,
        requested_by=made.requested_by,
        requested_at=when(made.requested_at),
        attempts=made.attempts,
        errors=tuple(made.errors),
        categories=tuple(map(_category, made.categories)),
        verified_at=when(made.verified_at) if made.HasField("verified_at") else None,
        files=tuple(map(_files, made.files)),
        compacted_at=when(made.compacted_at) if made.HasField("compacted_at") else None,
    )


def _category(part: pb.ErasedCategory) -> ErasedCategory:
    return ErasedCategory(part.category, part.removed, part.left if part.HasField("left") else None, part.error)


def _files(one: pb.StoreFiles) -> StoreFiles:
    return StoreFiles(one.store, one.state, when(one.rewritten_at) if one.HasField("rewritten_at") else None)
