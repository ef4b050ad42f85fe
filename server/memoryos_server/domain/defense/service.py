"""What administrators see and change of the defense."""

from __future__ import annotations

from dataclasses import dataclass

from memoryos_server.domain.core.audit import concerns
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import Forbidden, Invalid
from memoryos_server.domain.core.paging import place_of, size_of, token_of
from memoryos_server.domain.defense.sharing import Defense
from memoryos_server.domain.ports.defense import PERMANENT, Ban, Counts, Listed


@dataclass(frozen=True, slots=True)
class Stats:
    """The counters.

    Attributes:
        counts: What was taken and stopped, ever, by all servers.
        temporary: Bans that hold and end by themselves.
        permanent: Bans that hold until somebody ends them.
        listed: Entries of the whitelist.
    """

    counts: Counts
    temporary: int
    permanent: int
    listed: int


class DefenseService:
    """The defense, for keys of all tenants: an address belongs to none."""

    def __init__(self, defense: Defense) -> None:
        self._defense = defense

    async def stats(self, who: Caller) -> Stats:
        """The counters.

        Raises:
            Forbidden: The key is not of all tenants.
        """
        _check(who)
        counts = await self._defense.counts()
        bans = self._defense.guard.bans()
        permanent = sum(ban.until == PERMANENT for ban in bans)
        return Stats(counts, len(bans) - permanent, permanent, len(self._defense.guard.whitelist()))

    async def bans(self, who: Caller, page_size: int | None, page_token: str) -> tuple[list[Ban], str, int]:
        """A page of the bans that hold, newest first, the token of the next page, and the number of all.

        Raises:
            Forbidden: The key is not of all tenants.
            Invalid: The page size or the token is malformed.
        """
        _check(who)
        size, after = size_of(page_size), _after(page_token)
        every = self._defense.guard.bans()
        left = [ban for ban in every if after is None or _at(ban) > after]
        token = token_of([str(part) for part in _at(left[size - 1])]) if len(left) > size else ""
        return left[:size], token, len(every)

    async def unban(self, who: Caller, ip: str) -> None:
        """Ends a ban; an address that is free stays so.

        Raises:
            Forbidden: The key is not of all tenants.
            Invalid: It is no address.
        """
        _check(who)
        concerns(await self._defense.unban(ip))

    async def whitelist(self, who: Caller) -> list[Listed]:
        """The whitelist, newest first.

        Raises:
            Forbidden: The key is not of all tenants.
        """
        _check(who)
        return self._defense.guard.whitelist()

    async def allow(self, who: Caller, ip: str, reason: str) -> None:
        """Adds to the whitelist.

        Raises:
            Forbidden: The key is not of all tenants.
            Invalid: It is neither an address nor a network, the reason is too long, or the whitelist is full.
        """
        _check(who)
        concerns(await self._defense.allow(ip, reason, who.key_id))

    async def disallow(self, who: Caller, ip: str, prefix_length: int | None) -> str:
        """Takes off the whitelist; returns the name of what was taken off.

        Raises:
            Forbidden: The key is not of all tenants.
            Invalid: It is neither an address nor a network.
            NotFound: It is not on it.
        """
        _check(who)
        name = await self._defense.disallow(ip if prefix_length is None else f"{ip}/{prefix_length}")
        concerns(name)
        return name


def _check(who: Caller) -> None:
    if not who.any_tenant:
        raise Forbidden("The defense is for keys of all tenants: an address belongs to none", param="X-Tenant-ID")


def _after(token: str) -> tuple[float, str] | None:
    """The place in the list behind which a page begins; None for the first page."""
    place = place_of(token, 2)
    if place is None:
        return None
    try:
        return float(place[0]), place[1]
    except ValueError:
        raise Invalid("page_token is none that was given out", param="page_token") from None


def _at(ban: Ban) -> tuple[float, str]:
    return -ban.banned_at, ban.place
