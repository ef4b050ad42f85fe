"""What people agree to, for both clients. Of oneself it takes a key with `security`, of others `admin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.v1 import consent_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


class Consent:
    """`Client.consent`. Every method takes `user_id` and `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def record(self, purpose: str, *, granted: bool, user_id: str | None = None, timeout: float | None = None) -> None:
        """Records that a person agrees to a purpose, or does so no longer.

        Args:
            purpose: What for, such as `data_processing`; withdrawn, that stops remembering and recalling at once.
            granted: Whether the person agrees.
            user_id: Who decides; default: the client's user.
            timeout: Seconds; default: the client's.
        """
        request = pb.RecordConsentRequest(purpose=purpose, granted=granted)
        self._client.call("RecordConsent", request, user_id=user_id, timeout=timeout)

    def check(self, purpose: str, *, user_id: str | None = None, timeout: float | None = None) -> bool:
        """Whether the person agrees to a purpose; without a record False."""
        request = pb.CheckConsentRequest(purpose=purpose)
        return _has(self._client.call("CheckConsent", request, user_id=user_id, timeout=timeout))


class AsyncConsent:
    """`AsyncClient.consent`; as `Consent`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def record(
        self, purpose: str, *, granted: bool, user_id: str | None = None, timeout: float | None = None
    ) -> None:
        """Records that a person agrees to a purpose, or does so no longer."""
        request = pb.RecordConsentRequest(purpose=purpose, granted=granted)
        await self._client.call("RecordConsent", request, user_id=user_id, timeout=timeout)

    async def check(self, purpose: str, *, user_id: str | None = None, timeout: float | None = None) -> bool:
        """Whether the person agrees to a purpose; without a record False."""
        request = pb.CheckConsentRequest(purpose=purpose)
        return _has(await self._client.call("CheckConsent", request, user_id=user_id, timeout=timeout))


def _has(message: Message) -> bool:
    return cast(pb.CheckConsentResponse, message).has_consent
