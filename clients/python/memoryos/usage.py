"""What chats cost, by day, tenant, key and model, for both clients."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from memoryos.v1 import usage_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class Spent:
    """What one key spent on one model on one day.

    Attributes:
        day: The day, UTC.
        tenant_id: The tenant of the calls.
        key_id: The key's id.
        model: The model that was asked for; `other` stands for those beyond the bound.
        requests: Chats whose answer began.
        input_tokens: What the provider says it read.
        output_tokens: What it says it wrote.
        cached_tokens: The part of the input that it had cached.
        reasoning_tokens: The part of the output that is reasoning.
        injected_tokens: The part of all input that is memories, estimated.
        estimated_requests: Those of the requests of which the provider said nothing.
        estimated_input_tokens: What these read, estimated; not part of `input_tokens`.
        estimated_output_tokens: What these wrote, estimated; not part of `output_tokens`.
    """

    day: date
    tenant_id: str
    key_id: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    injected_tokens: int
    estimated_requests: int
    estimated_input_tokens: int
    estimated_output_tokens: int


@dataclass(frozen=True, slots=True)
class SpentPage:
    """A page of usage, newest day first; `next_page_token` names the next page, "" at the end."""

    usage: tuple[Spent, ...]
    next_page_token: str


class Usage:
    """`Client.usage`."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def list(
        self,
        *,
        first: date | None = None,
        last: date | None = None,
        key_id: str = "",
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> SpentPage:
        """A page of what was spent: with `admin` by all keys of the tenant, else by the own key.

        Args:
            first: The first day, UTC; None: 30 days up to the last.
            last: The last day; None: today.
            key_id: Only this key's; "": all that may be seen.
            tenant_id: Whose keys, `*` for all tenants; "": the client's tenant.
            page_size: 1..100; default 100.
            page_token: `next_page_token` of the page before; "": the first page.
            timeout: Seconds; default: the client's.
        """
        request = _request(first, last, key_id, tenant_id, page_size, page_token)
        return _page(self._client.call("ListUsage", request, timeout=timeout))


class AsyncUsage:
    """`AsyncClient.usage`; as `Usage`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def list(
        self,
        *,
        first: date | None = None,
        last: date | None = None,
        key_id: str = "",
        tenant_id: str = "",
        page_size: int | None = None,
        page_token: str = "",
        timeout: float | None = None,
    ) -> SpentPage:
        """A page of what was spent."""
        request = _request(first, last, key_id, tenant_id, page_size, page_token)
        return _page(await self._client.call("ListUsage", request, timeout=timeout))


def _request(
    first: date | None, last: date | None, key_id: str, tenant_id: str, page_size: int | None, page_token: str
) -> pb.ListUsageRequest:
    return pb.ListUsageRequest(
        from_day=first.isoformat() if first else "",
        to_day=last.isoformat() if last else "",
        key_id=key_id,
        tenant_id=tenant_id,
        page_size=page_size,
        page_token=page_token,
    )


def _page(message: Message) -> SpentPage:
    page = cast(pb.ListUsageResponse, message)
    return SpentPage(tuple(map(_spent, page.usage)), page.next_page_token)


def _spent(one: pb.Usage) -> Spent:
    return Spent(
        day=date.fromisoformat(one.day),
        tenant_id=one.tenant_id,
        key_id=one.key_id,
        model=one.model,
        requests=one.requests,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cached_tokens=one.cached_tokens,
        reasoning_tokens=one.reasoning_tokens,
        injected_tokens=one.injected_tokens,
        estimated_requests=one.estimated_requests,
        estimated_input_tokens=one.estimated_input_tokens,
        estimated_output_tokens=one.estimated_output_tokens,
    )
