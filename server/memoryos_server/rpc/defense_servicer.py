"""DefenseService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import defense_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.defense.service import DefenseService
from memoryos_server.domain.ports.defense import PERMANENT, Ban, Listed
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.convert import optional
from memoryos_server.rpc.defense import Door
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST = 2**32 - 1
_DIGEST = 16

_REASONS = {
    "auth_failures": pb.BAN_REASON_AUTH_FAILURES,
    "flood": pb.BAN_REASON_FLOOD,
    "scraping": pb.BAN_REASON_SCRAPING,
}


class DefenseServicer:
    """Serves memoryos.v1.DefenseService."""

    def __init__(self, defense: DefenseService, door: Door, auth: Auth) -> None:
        self._defense = defense
        self._door = door
        self._auth = auth

    async def GetDefenseStats(
        self, _request: pb.GetDefenseStatsRequest, _context: _Context
    ) -> pb.GetDefenseStatsResponse:
        """Counts what was stopped."""
        stats = await self._defense.stats(caller())
        return pb.GetDefenseStatsResponse(
            total_requests=min(stats.counts.requests, _MOST),
            blocked_requests=min(stats.counts.blocked, _MOST),
            total_bans=stats.temporary + stats.permanent,
            temp_bans=stats.temporary,
            permanent_bans=stats.permanent,
            whitelist_size=stats.listed,
        )

    async def ListBans(self, request: pb.ListBansRequest, _context: _Context) -> pb.ListBansResponse:
        """Lists bans."""
        bans, token, total = await self._defense.bans(caller(), optional(request, "page_size"), request.page_token)
        return pb.ListBansResponse(bans=[_ban(ban) for ban in bans], next_page_token=token, total=total)

    async def UnbanIp(self, request: pb.UnbanIpRequest, _context: _Context) -> pb.UnbanIpResponse:
        """Ends a ban."""
        await self._defense.unban(caller(), request.ip)
        return pb.UnbanIpResponse()

    async def ListWhitelist(self, _request: pb.ListWhitelistRequest, _context: _Context) -> pb.ListWhitelistResponse:
        """Lists the whitelist."""
        entries = await self._defense.whitelist(caller())
        return pb.ListWhitelistResponse(entries=[_entry(one) for one in entries], total=len(entries))

    async def WhitelistIp(self, request: pb.WhitelistIpRequest, _context: _Context) -> pb.WhitelistIpResponse:
        """Adds to the whitelist."""
        await self._defense.allow(caller(), request.ip, request.reason)
        return pb.WhitelistIpResponse()

    async def RemoveWhitelistIp(
        self, request: pb.RemoveWhitelistIpRequest, _context: _Context
    ) -> pb.RemoveWhitelistIpResponse:
        """Takes off the whitelist."""
        name = await self._defense.disallow(caller(), request.ip, optional(request, "prefix_length"))
        return pb.RemoveWhitelistIpResponse(ip=name)

    async def ReportUnknownRoute(
        self, request: pb.ReportUnknownRouteRequest, _context: _Context
    ) -> pb.ReportUnknownRouteResponse:
        """Counts a route that does not exist."""
        call = current_call()
        await self._door.unknown(self._auth.address(call), call.metadata, request.digest[:_DIGEST])
        return pb.ReportUnknownRouteResponse()


def _ban(ban: Ban) -> pb.Ban:
    shown = pb.Ban(ip=ban.place, reason=_REASONS.get(ban.reason, pb.BAN_REASON_UNSPECIFIED), offence=ban.offence)
    shown.banned_at.FromDatetime(from_unix(ban.banned_at))
    if ban.until != PERMANENT:
        shown.expires_at.FromDatetime(from_unix(ban.until))
    return shown


def _entry(one: Listed) -> pb.WhitelistEntry:
    shown = pb.WhitelistEntry(ip=one.network, reason=one.reason, added_by=one.added_by)
    shown.added_at.FromDatetime(from_unix(one.added_at))
    return shown
