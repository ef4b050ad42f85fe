"""All providers behind one port: finds whom a model leads to, tries again, and turns to others where one fails."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from types import TracebackType
from urllib.parse import urlsplit

from memoryos.tracing import NO_SPANS, Span, Spans, Value
from memoryos_server.domain.chat.responses import RESPONSES
from memoryos_server.domain.core.faults import DeadlineExceeded, Fault, Invalid, UpstreamRejected, unknown_model
from memoryos_server.domain.ports import Asked, ProviderAnswer, Served
from memoryos_server.tools.llm import interfaces
from memoryos_server.tools.llm.catalog import Catalog, route_to
from memoryos_server.tools.llm.interfaces import Answer
from memoryos_server.tools.llm.lists import Listed, Lists
from memoryos_server.tools.llm.provider import Deployment, Provider, Route
from memoryos_server.tools.llm.steadiness import Breaker, RetryBudget
from memoryos_server.tools.llm.transport import AttemptFailed, Transport

BACKOFF_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 8.0

MOST_BREAKERS = 10_000
"""Names of models come from clients where a provider has no list; what is remembered of them ends somewhere."""

_TOO_LONG = re.compile(
    r"context.?(?:length|window|size)|maximum (?:context|prompt|input)|(?:prompt|input|request) is too (?:long|large)"
    r"|too many (?:input |prompt )?tokens",
    re.I,
)
_TOO_MUCH = re.compile(r"max_(?:completion_)?tokens|image", re.I)
"""What is too large then is not the conversation."""

_Key = tuple[str, str, str]


class Gateway:
    """The providers, as the port `Llm` has them. Open it with `async with`.

    Args:
        catalog: Who there is.
        answered: Told how each attempt began (`ok`, `rejected`, `failed`, `timeout`), and after how many seconds.
        spans: Makes a span of each attempt.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        answered: Callable[[str, float], None] = lambda outcome, seconds: None,
        spans: Spans = NO_SPANS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._answered = answered
        self._spans = spans
        self._clock = clock
        self._transport = Transport()
        self._lists = Lists(self._transport, clock)
        self._budget = RetryBudget()
        self._breakers: dict[_Key, Breaker] = {}

    async def __aenter__(self) -> Gateway:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lists.close()
        await self._transport.__aexit__(kind, error, trace)

    def change(self, catalog: Catalog) -> None:
        """Calls from now on go by another catalog; those under way end as they began."""
        self._catalog = catalog
        self._lists.keep(catalog.providers.values())
        self._breakers.clear()

    async def serves(self, model: str) -> bool:
        """Whether a request for the model goes to somebody."""
        return await self._route(model) is not None

    async def models(self) -> list[Mapping[str, object]]:
        """The models of the file, then those that providers list themselves."""
        found: dict[str, Mapping[str, object]] = {name: {"id": name} for name in self._catalog.names}
        for _, listed in await self._lists.of(self._catalog.listing):
            for item in listed or ():
                found.setdefault(str(item["id"]), item)
        return list(found.values())

    async def complete(self, asked: Asked) -> ProviderAnswer:
        """The answer to a request.

        Raises:
            Invalid: Nobody serves the model.
            UpstreamRejected: The provider refused the request.
            Upstream: The providers failed, or refused our keys.
            DeadlineExceeded: They took too long.
        """
        response, served, breaker = await self._open(asked, stream=False)
        try:
            body = await response.whole()
        except Fault:
            breaker.failed()
            raise
        else:
            breaker.answered()
            return ProviderAnswer(body, response.content_type, served)
        finally:
            response.hang_up()

    async def stream(self, asked: Asked, served: Callable[[Served], None]) -> AsyncGenerator[bytes, None]:
        """The raw bytes of a streamed answer as they come. Closing the iterator closes the connection.

        Raises:
            Invalid: Nobody serves the model.
            UpstreamRejected: The provider refused the request.
            Upstream: The providers failed, refused our keys, or one broke off.
            DeadlineExceeded: They took too long to begin, or one sent no data for too long.
        """
        response, who, breaker = await self._open(asked, stream=True)
        try:
            served(who)
            async for piece in response.pieces():
                yield piece
            breaker.answered()
        except Fault:
            breaker.failed()
            raise
        finally:
            response.hang_up()

    async def _route(self, model: str, *, free: bool = False) -> Route | None:
        """Where a name leads: as the file says, else who lists it, else the default.

        Args:
            model: The name.
            free: It stands in the file, and may name any model of a provider.
        """
        if (route := self._catalog.written(model, free=free)) is not None:
            return route
        lists = await self._lists.of(self._catalog.listing)
        # Whoever has it; else whoever has no list, as small servers do; else whoever does not tell it now.
        for told in (partial(_has, model), _has_none, _is_unknown):
            for provider, listed in lists:
                if told(listed):
                    return route_to(provider, model)
        default = self._catalog.default
        return await self._route(default, free=True) if default and default != model else None

    async def _open(self, asked: Asked, *, stream: bool) -> tuple[Answer, Served, Breaker]:
        """An answer that has begun, of the model itself or, where that fails, of one that stands in for it."""
        route = await self._route(asked.model)
        if route is None:
            raise unknown_model(asked.model)
        self._budget.called()
        own: Fault | None = None
        other: Fault | None = None
        rested = route.fallbacks and all(self._breaker(one).rests for one in route.deployments)
        # Whoever rests is asked last: there is no sense in waiting for them while another answers.
        names = [*route.fallbacks, ""] if rested else ["", *route.fallbacks]
        seen: list[tuple[Deployment, ...]] = []
        while names:
            name = names.pop(0)
            trying = await self._route(name, free=True) if name else route
            if trying is None or trying.deployments in seen:
                continue
            seen.append(trying.deployments)
            try:
                return await self._one_of(trying, asked, stream=stream)
            except AttemptFailed as failed:
                if trying is route:
                    own = failed.fault
                else:
                    other = other or failed.fault
                if _is_too_long(failed.fault):
                    names = list(trying.context_fallbacks)
                elif not failed.elsewhere and trying is route:
                    break  # the request is wrong; that a substitute does not take it says nothing of the others
        # What is wrong with the model that was asked for, rather than with a substitute.
        fault = own or other
        if fault is None:
            raise RuntimeError("the route itself is tried")
        raise fault

    async def _one_of(self, route: Route, asked: Asked, *, stream: bool) -> tuple[Answer, Served, Breaker]:
        """An answer of one of a route's deployments; each try goes to another while there are any."""
        now = asyncio.get_running_loop().time
        waiting = [(one, 0.0) for one in self._in_turn(route.deployments)]  # and when each may be asked
        for attempt in range(self._catalog.retries + 1):
            deployment, _ = waiting.pop(0)
            try:
                return await self._attempt(deployment, asked, attempt, stream=stream)
            except AttemptFailed as failed:
                if failed.again:
                    waiting.append((deployment, now() + self._pause(attempt, failed.wait)))
                    waiting.sort(
                        key=lambda one: one[1]
                    )  # whoever may be asked first; those not asked yet in their order
                hopeless = not failed.elsewhere or not waiting or attempt == self._catalog.retries
                wait = waiting[0][1] - now() if waiting else 0.0
                if hopeless or wait > LONGEST_WAIT_SECONDS or not self._budget.spend():
                    raise
            if wait > 0:
                await asyncio.sleep(wait)
        raise RuntimeError("the last attempt ends the loop")

    @staticmethod
    def _pause(attempt: int, asked: float | None) -> float:
        """Seconds before the same deployment is asked again: what it asked for, else at random up to twice the last."""
        if asked is not None:
            return asked
        return random.uniform(0, min(LONGEST_WAIT_SECONDS, BACKOFF_SECONDS * 2**attempt))  # noqa: S311  # no secret

    def _in_turn(self, deployments: tuple[Deployment, ...]) -> list[Deployment]:
        """The deployments in the order in which they are tried: by chance and weight, those that rest behind.

        The order of weighted chance is that of u^(1/w), u uniform (Efraimidis and Spirakis 2006).
        """
        if len(deployments) == 1:
            return list(deployments)
        drawn = [(random.random() ** (1 / one.weight), one) for one in deployments]  # noqa: S311  # no secret
        drawn.sort(key=lambda pair: -pair[0])
        return sorted((one for _, one in drawn), key=self._rest_of)

    def _rest_of(self, deployment: Deployment) -> float:
        breaker = self._breaker(deployment)
        return breaker.until if breaker.rests else 0.0

    def _breaker(self, deployment: Deployment) -> Breaker:
        provider = deployment.provider
        key = (provider.name, provider.base_url, deployment.model)
        breaker = self._breakers.get(key)
        if breaker is None:
            if len(self._breakers) >= MOST_BREAKERS:
                del self._breakers[next(iter(self._breakers))]  # the oldest
            breaker = self._breakers[key] = Breaker(self._clock)
        return breaker

    async def _attempt(
        self, deployment: Deployment, asked: Asked, attempt: int, *, stream: bool
    ) -> tuple[Answer, Served, Breaker]:
        """One attempt, and how it went."""
        provider = deployment.provider
        breaker = self._breaker(deployment)
        try:
            call = interfaces.call(deployment, asked)
        except Invalid as fault:  # here; others may understand it
            raise AttemptFailed(fault, again=False, elsewhere=True) from None
        about = _about(provider, asked.path, attempt) if self._spans.on else {}
        began, outcome = self._clock(), ""
        probe = breaker.probes(provider.first_byte_timeout_seconds)
        try:
            with self._spans.client(f"POST {asked.path}", about) as span:
                try:
                    response = await call.begin(self._transport, stream=stream)
                except AttemptFailed as failed:
                    outcome = _failed(span, failed.fault)
                    if failed.elsewhere:
                        breaker.failed(failed.wait, probe=probe)
                    else:
                        breaker.answered()  # it lives: the request was wrong
                    if asked.path == RESPONSES.path and isinstance(failed.fault, DeadlineExceeded):
                        # It may have been stored, or go on in the background: asked again, there would be two.
                        failed.again = failed.elsewhere = False
                    raise
                outcome = "ok"
                span.note({"http.response.status_code": response.status})
                breaker.began()
                return response, Served(provider.name, call.dropped), breaker
        finally:
            if outcome:
                self._answered(outcome, self._clock() - began)
            else:
                breaker.left(probe=probe)  # the client left: that says nothing of the provider


def _has(model: str, listed: Listed | None) -> bool:
    # Ollama takes names without their default tag, Gemini without the collection's prefix.
    names = {model, f"{model}:latest", f"models/{model}"}
    return any(item["id"] in names for item in listed or ())


def _has_none(listed: Listed | None) -> bool:
    return listed == []


def _is_unknown(listed: Listed | None) -> bool:
    return listed is None


def _is_too_long(fault: Fault) -> bool:
    """Whether a provider says that a request does not fit into the model's context."""
    if not isinstance(fault, UpstreamRejected) or fault.status not in (400, 413, 422):
        return False
    if fault.code == "context_length_exceeded":
        return True
    return bool(_TOO_LONG.search(fault.message)) and not _TOO_MUCH.search(f"{fault.param} {fault.message}")


def _about(provider: Provider, path: str, attempt: int) -> dict[str, Value]:
    """What spans say of an attempt: never the path, which may hold a key."""
    url = urlsplit(provider.base_url)
    about: dict[str, Value] = {
        "http.request.method": "POST",
        "url.template": path,
        "gen_ai.provider.name": provider.name,
    }
    if url.hostname:
        about |= {"server.address": url.hostname, "server.port": url.port or (443 if url.scheme == "https" else 80)}
    return about | ({"http.request.resend_count": attempt} if attempt else {})


def _failed(span: Span, fault: Fault) -> str:
    """Tells a span of a failure; its outcome."""
    outcome = "failed"
    if isinstance(fault, UpstreamRejected):
        outcome = "rejected"
    elif isinstance(fault, DeadlineExceeded):
        outcome = "timeout"
    if (status := fault.metadata.get("upstream_status", "")).isdigit():
        span.note({"http.response.status_code": int(status)})
    span.fail(outcome)
    return outcome
