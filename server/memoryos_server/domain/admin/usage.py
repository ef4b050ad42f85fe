"""Who spent how much: an administrator sees the keys of a tenant, everybody else sees the own key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import date, datetime, timedelta

from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.core.caller import ANY_TENANT, Caller, check_tenant
from memoryos_server.domain.core.faults import BackendDown, Forbidden, Invalid
from memoryos_server.domain.core.paging import place_of, size_of, token_of
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports.usage import Usage, UsageStore

DEFAULT_DAYS = 30
MOST_DAYS = 400
MOST_DAYS_OF_ALL = 31
"""The longest span of one tenant, and of all tenants together."""

_Place = tuple[int, str, str, str]


class UsageService:
    """What chats cost.

    Args:
        store: What is kept.
        meter: What this process has counted and not written yet.
        clock: The present time, UTC.
    """

    def __init__(self, store: UsageStore, meter: Meter, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._meter = meter
        self._clock = clock

    async def usage(
        self,
        who: Caller,
        *,
        tenant_id: str = "",
        key_id: str = "",
        first: str = "",
        last: str = "",
        page_size: int | None = None,
        page_token: str = "",
    ) -> tuple[list[Usage], str]:
        """A page of what was spent by day, tenant, key and model, newest day first, and the token of the next page.

        Args:
            who: Who asks.
            tenant_id: Whose keys; "" for the tenant of the call, `*` for all tenants.
            key_id: Only this key's; "" for all that the caller may see.
            first: The first day, `YYYY-MM-DD`, UTC; "" for 30 days up to the last.
            last: The last day; "" for today.
            page_size: At least 1; at most 100, which is the default.
            page_token: What came with the page before; "" for the first page.

        Raises:
            Invalid: A day, the span, the page size or the token is malformed.
            Forbidden: The caller may not see this tenant's or this key's.
            BackendDown: The store does not answer.
        """
        size, after = size_of(page_size), _place(page_token)
        tenant = _tenant(who, tenant_id)
        key = _key(who, key_id)
        days = self._days(first, last, MOST_DAYS_OF_ALL if tenant == ANY_TENANT else MOST_DAYS)
        with contextlib.suppress(BackendDown):  # what is kept may be read all the same
            await self._meter.write()
        found: list[Usage] = []
        while days and len(found) <= size:
            # A few days at a time, since a page is seldom all of them.
            some, days = days[:7], days[7:]
            if after is not None and -some[-1].toordinal() < after[0]:
                continue
            for one_tenant in [tenant] if tenant != ANY_TENANT else await self._tenants(some):
                found += [
                    one
                    for one in await self._store.read(one_tenant, some)
                    if key in ("", one.key_id) and (after is None or _at(one) > after)
                ]
        found.sort(key=_at)
        return found[:size], _token(found[size - 1]) if len(found) > size else ""

    async def _tenants(self, days: list[date]) -> list[str]:
        return sorted({name for day in days for name in await self._store.tenants(day)})

    def _days(self, first: str, last: str, most: int) -> list[date]:
        """The days asked for, newest first."""
        until = _day(last, "to") if last else self._clock().date()
        since = _day(first, "from") if first else until - timedelta(days=DEFAULT_DAYS - 1)
        if since > until:
            raise Invalid("from must not be after to", param="from")
        count = (until - since).days + 1
        if count > most:
            raise Invalid(f"from and to may be at most {most} days apart", param="from")
        return [until - timedelta(days=back) for back in range(count)]


def _tenant(who: Caller, named: str) -> str:
    """The tenant to look at, `*` for all."""
    if named in ("", who.tenant_id):
        return who.tenant_id
    if named != ANY_TENANT:
        check_tenant(named, "tenant_id")
    if not (who.any_tenant and who.may("admin")):
        raise Forbidden("Only an administrator of all tenants may name another tenant", param="tenant_id")
    return named


def _key(who: Caller, named: str) -> str:
    """The key to look at, "" for all."""
    if who.may("admin"):
        return named
    if named not in ("", who.key_id):
        raise Forbidden("Seeing other keys' usage needs the permission admin", metadata={"permission": "admin"})
    return who.key_id


def _day(text: str, param: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text or day.year < 1971:
        raise Invalid(f"{param} must be a day, YYYY-MM-DD", param=param)
    return day


def _at(one: Usage) -> _Place:
    return -one.day.toordinal(), one.tenant_id, one.key_id, one.model


def _token(one: Usage) -> str:
    day, *names = _at(one)
    return token_of([str(day), *names])


def _place(token: str) -> _Place | None:
    place = place_of(token, 4)
    if place is None:
        return None
    day, *names = place
    try:
        return int(day), names[0], names[1], names[2]
    except ValueError:
        raise Invalid("page_token is none that was given out", param="page_token") from None
