"""The defense at the door: who is banned is stopped before anything else, who makes too many calls before his key is looked up.

Public methods stand outside of it: probes and metrics must be answered whatever comes from an address, which may be that of a
node that carries everybody's traffic.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Awaitable, Mapping
from functools import cache
from typing import Any

import grpc
from grpc_status import rpc_status

from memoryos_server.domain.core.faults import BackendDown, Fault, Forbidden, Invalid, Unauthenticated
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.defense.gcra import Standing
from memoryos_server.domain.defense.guard import Guard, LimitReached
from memoryos_server.domain.ports.defense import PERMANENT, Ban
from memoryos_server.rpc import status
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.status import Ending
from memoryos_server.rpc.wrap import QUIET_HEADER, REQUEST_ID_HEADER, Call, text_metadata

_log = Sparing(logging.getLogger(__name__))

_MOST_ENDINGS = 1_000

_Context = grpc.aio.ServicerContext[Any, Any]


def banned(ban: Ban, now: float) -> Forbidden:
    """The fault of a banned address."""
    if ban.until == PERMANENT:
        return Forbidden("This address is banned", reason="ip_banned")
    seconds = max(1.0, ban.until - now)
    return Forbidden("This address is banned for a while", reason="ip_banned", retry_after=seconds)


def headers(standing: Standing) -> dict[str, str]:
    """How somebody stands with a limit, as trailing metadata; the bridge makes headers of it.

    The form is that of `RateLimit` in draft-ietf-httpapi-ratelimit-headers-07: one value, for each costs either side.
    """
    limit, remaining, reset = standing.limit, standing.remaining, math.ceil(standing.reset)
    told = {"ratelimit": f"limit={limit}, remaining={remaining}, reset={reset}"}
    if not standing.allowed:
        told["retry-after"] = str(max(1, math.ceil(standing.retry_after)))
    return told


class Door:
    """Looks at calls from outside to inside: `stop`, then the interceptors `address` and `auth`."""

    def __init__(self, guard: Guard, auth: Auth, metrics: Metrics) -> None:
        """Keeps who decides, who knows addresses and keys, and who counts."""
        self._guard = guard
        self._auth = auth
        self._metrics = metrics
        self._refused = metrics.refused.labels("ban")
        self._endings: dict[tuple[str, float, int], Ending] = {}
        # Looking a counter up by its labels takes as long as all else that such a call costs here.
        self._stopped = cache(lambda path: metrics.requests.labels(path, "PERMISSION_DENIED"))

    def stop(self, call: Call) -> grpc.Status | None:
        """The end of a call of a banned address, or None.

        It stands before everything else, because such a call must cost next to nothing: it makes no line in the log, no
        record, and no answer anew.
        """
        method = call.method
        if method.permission == "public":
            if method.routes:
                self._guard.pass_by()
            return None
        call.address = self._auth.address(call)
        ban = self._guard.enter(call.address)
        if ban is None:
            return None
        self._refused.inc()
        self._stopped(method.path).inc()
        ending = self._ending(ban)
        if (request_id := call.metadata.get(REQUEST_ID_HEADER)) and call.metadata.get(QUIET_HEADER) != "1":
            told = (*ending.trailing_metadata, (REQUEST_ID_HEADER, request_id))
            ending = Ending(ending.code, ending.details, told)
        return ending

    def _ending(self, ban: Ban) -> Ending:
        now = self._guard.now
        left = 0 if ban.until == PERMANENT else max(1, int(ban.until - now))
        kept = (ban.place, ban.until, left)
        ending = self._endings.get(kept)
        if ending is None:
            _log.warning("calls of a banned address are refused")
            if len(self._endings) >= _MOST_ENDINGS:
                self._endings.clear()
            made = rpc_status.to_status(status.to_status(banned(ban, now)))
            ending = self._endings[kept] = Ending(made.code, made.details, tuple(made.trailing_metadata))
        return ending

    def address(self, call: Call) -> None:
        """The interceptor outside of auth: limits addresses, but for callers known without a store, whom it sets.

        Raises:
            TooMany: The address makes too many calls without a valid key.
        """
        if call.method.permission == "public" or self._auth.recall(call):
            return
        try:
            self._guard.check_address(call.address, lambda: self._auth.seen(call.metadata))
        except LimitReached:
            self._metrics.refused.labels("address").inc()
            raise

    def auth(self, call: Call) -> Awaitable[None] | None:
        """The interceptor `auth`; who it refuses is counted. Inside of it, which says whose key it is, keys are limited.

        Raises:
            Fault: As `Auth`.
            TooMany: The key makes too many calls.
        """
        if call.caller is None:
            return self._look_up(call)
        self._limit(call)  # before it is said what the key may not: that is a call of its, too
        self._auth.admit(call)
        return None

    async def _look_up(self, call: Call) -> None:
        try:
            await self._auth(call)
        except Unauthenticated as error:
            wrong = "authorization" in call.metadata and error.reason != "key_expired"
            self._guard.refused(call.address, wrong_key=wrong)
            raise
        except (Forbidden, Invalid):
            self._limit(call)
            raise
        self._limit(call)

    def _limit(self, call: Call) -> None:
        who = call.caller
        if who is None or who.anonymous or call.method.permission == "public":
            return
        try:
            standing = self._guard.check_key(who.key_id, call.address)
        except LimitReached:
            self._metrics.refused.labels("key").inc()
            raise
        # A bridge makes headers of it with every answer. To others it would cost more than it tells, while there is much left.
        if standing is not None and (call.metadata.get(QUIET_HEADER) == "1" or 2 * standing.remaining < standing.limit):
            call.trailers.update(headers(standing))

    async def unknown(self, address: str, metadata: Mapping[str, str], digest: bytes) -> None:
        """Counts a call of what does not exist, by whoever holds no valid key.

        Raises:
            Forbidden: The address is banned (reason `ip_banned`).
            TooMany: It makes too many calls without a valid key.
        """
        ban = self._guard.enter(address)
        if ban is not None:
            self._refused.inc()
            raise banned(ban, self._guard.now)
        try:
            self._guard.check_address(address, lambda: self._auth.seen(metadata))
        except LimitReached:
            self._metrics.refused.labels("address").inc()
            raise
        try:
            known = await self._auth.knows(metadata)
        except BackendDown:
            return  # nobody can tell
        if not known:
            self._guard.unknown(address, digest)


class UnknownMethods(grpc.GenericRpcHandler):
    """Answers calls of methods that do not exist as gRPC itself would, and has the door count them. Added last."""

    def __init__(self, door: Door, auth: Auth) -> None:
        """Keeps who counts, and who knows addresses."""
        self._door = door
        self._auth = auth

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Takes every method."""
        path = details.method

        async def answer(_requests: object, context: _Context) -> None:
            metadata = text_metadata(context)
            address = self._auth.address_of(metadata, context.peer)
            what = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()
            try:
                await self._door.unknown(address, metadata, what)
            except Fault as fault:
                await context.abort_with_status(rpc_status.to_status(status.to_status(fault)))
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        return grpc.stream_stream_rpc_method_handler(answer)
