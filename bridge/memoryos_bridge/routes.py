"""The route table, made from the methods' records: it finds a request's route and serves it by a call to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from memoryos.schema import Method, Route, SchemaError
from memoryos_bridge.admission import Admission
from memoryos_bridge.answers import Answer
from memoryos_bridge.binding import Binding
from memoryos_bridge.codec import Codec
from memoryos_bridge.errors import BridgeError, Cut, from_rpc, unreachable
from memoryos_bridge.exchange import KEY, Exchange
from memoryos_bridge.headers import Forwarding, Metadata
from memoryos_bridge.remote import Remote

Unknown = Callable[[Exchange, str], Awaitable[None]]
"""Told of a request, and its path, for which there is no route; refuses it by raising, or returns."""

Check = Callable[[Exchange, bool], Awaitable[None]]
"""Refuses an exchange by raising; gets whether its route is public."""

Handler = Callable[[Exchange, Sequence[str]], Awaitable[None]]
"""Serves an exchange; gets the raw path segments of the template's parameters, in order."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One route.

    Attributes:
        verb: The HTTP method in upper case.
        template: Such as `/v1/memory/{memory_id}/history`.
        handler: What serves it.
        public: It needs no key, whatever the server's settings.
        success_false: Errors carry `"success": false`.
    """

    verb: str
    template: str
    handler: Handler
    public: bool = False
    success_false: bool = False


class RouteTable(BaseRoute):
    """All routes as one raw Starlette route: literal segments before parameters, on the path as it was sent."""

    def __init__(
        self, entries: Iterable[Entry], check: Check, admission: Admission, unknown: Unknown | None = None
    ) -> None:
        """Sorts the entries; `check` and `admission` are asked before any is served, `unknown` if none is found.

        Raises:
            SchemaError: Two entries have one route.
        """
        self._check = check
        self._admission = admission
        self._unknown = unknown
        self.entries = tuple(sorted(entries, key=lambda e: (sort_key(e.template), e.verb)))
        self._by_length: dict[int, list[tuple[tuple[str, ...], dict[str, Entry]]]] = {}
        for entry in self.entries:
            shape = tuple("{}" if part.startswith("{") else part for part in entry.template.split("/"))
            group = self._by_length.setdefault(len(shape), [])
            if not group or group[-1][0] != shape:
                group.append((shape, {}))
            verbs = group[-1][1]
            if entry.verb in verbs:
                raise SchemaError(f"two routes {entry.verb} {entry.template}")
            verbs[entry.verb] = entry

    def find(self, verb: str, raw_path: str) -> tuple[Entry, list[str]]:
        """The route of a request and its raw parameters.

        Raises:
            BridgeError: There is none (404), or only for other verbs (405, with `Allow`).
        """
        allowed: set[str] = set()
        wanted = "GET" if verb == "HEAD" else verb
        for verbs, parameters in self._at(raw_path):
            entry = verbs.get(wanted)
            if entry is not None:
                return entry, parameters
            allowed |= set(verbs)
        if not allowed:
            raise BridgeError(404, "There is no such route", "not_found")
        if "GET" in allowed:
            allowed.add("HEAD")
        allow = ", ".join(sorted(allowed))
        raise BridgeError(405, f"This route takes {allow}", "method_not_allowed", headers={"Allow": allow})

    def _at(self, raw_path: str) -> Iterator[tuple[Mapping[str, Entry], list[str]]]:
        """The routes of a path by verb, and the raw parameters of each template that fits it."""
        parts = raw_path.split("/")
        for shape, verbs in self._by_length.get(len(parts), ()):
            if all(s == p or (s == "{}" and p) for s, p in zip(shape, parts, strict=True)):
                yield verbs, [p for s, p in zip(shape, parts, strict=True) if s == "{}"]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Takes every HTTP request: what is not found is answered here too."""
        return (Match.FULL if scope["type"] == "http" else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request; the boundary has put its exchange into the scope.

        Raises:
            BridgeError: It fails; the boundary answers.
        """
        exchange: Exchange = scope[KEY]
        raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
        path = raw.decode("latin-1").partition("?")[0]
        try:
            entry, parts = self.find(exchange.verb, path)
        except BridgeError:
            # A wrong verb is told in the shape that the path's right ones have.
            exchange.success_false = any(it.success_false for verbs, _ in self._at(path) for it in verbs.values())
            await self._check(exchange, False)
            if self._unknown is not None:
                with self._admission.enter(exchange, False):
                    await self._unknown(exchange, path)
            raise
        exchange.success_false = entry.success_false
        await self._check(exchange, entry.public)
        exchange.route = entry.template
        with self._admission.enter(exchange, entry.public):
            await entry.handler(exchange, parts)


def sort_key(template: str) -> tuple[tuple[int, str], ...]:
    """Literal segments before parameters."""
    return Route("", template, (), "", "").sort_key


class Transcoded:
    """Serves one route of one RPC."""

    def __init__(self, codec: Codec, method: Method, route: Route, remote: Remote, forwarding: Forwarding) -> None:
        """Compiles the route.

        Raises:
            SchemaError: The method's options cannot be served.
        """
        self._method = method
        self._remote = remote
        self._forwarding = forwarding
        self.binding = Binding(codec, method, route)
        self.shape = Answer(codec, method, route)
        self.shape.unreachable()

    async def __call__(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves a request.

        Raises:
            BridgeError: It fails.
            ClientGone: The client left.
            Cut: A stream failed midway.
        """
        metadata = self._forwarding.metadata(exchange)
        request = await self.binding.request(exchange, parts)
        if self._method.streams:
            await self._stream(exchange, request, metadata)
            return
        try:
            response = await self._remote.call(exchange, self._method, request, metadata)
        except grpc.aio.AioRpcError as error:
            instead = self.shape.unreachable() if unreachable(error) else None
            if instead is None:
                raise self._error(error) from None
            response = instead
        status, body = self.shape.whole(response, request)
        await exchange.answer(status, body)

    async def _stream(self, exchange: Exchange, request: Message, metadata: Metadata) -> None:
        async with aclosing(self._remote.stream(exchange, self._method, request, metadata)) as messages:
            try:
                first = await anext(messages, None)
            except grpc.aio.AioRpcError as error:
                raise self._error(error) from None
            await exchange.start(self.shape.codes[0], "application/json", {}, None)
            try:
                async with aclosing(self.shape.pieces(first, messages, request)) as pieces:
                    async for piece in pieces:
                        await exchange.write(piece)
            except grpc.aio.AioRpcError as error:
                raise Cut(self._error(error)) from None
            await exchange.write(b"", last=True)

    def _error(self, error: grpc.aio.AioRpcError) -> BridgeError:
        made = from_rpc(error)
        made.param = self.binding.rest_path(made.param)
        return made


def transcoded(
    methods: Iterable[Method],
    codec: Codec,
    remote: Remote,
    forwarding: Forwarding,
    custom: Mapping[str, Handler],
) -> list[Entry]:
    """The entries of all routes that the methods declare.

    Args:
        methods: The records of the RPCs.
        codec: The codecs.
        remote: The server.
        forwarding: What of a request's head the server is told.
        custom: RPC path -> handler of the routes marked `rest.custom`.

    Raises:
        SchemaError: A custom route has no handler, or options cannot be served.
    """
    entries = []
    for method in methods:
        for route in method.routes:
            public = method.permission == "public"
            if method.rest.custom:
                handler = custom.get(method.path)
                if handler is None:
                    raise SchemaError(f"{method.path}: its route is custom, and nothing serves it")
                entries.append(Entry(route.verb, route.template, handler, public))
                continue
            served = Transcoded(codec, method, route, remote, forwarding)
            entries.append(Entry(route.verb, route.template, served, public, served.shape.success_false))
    return entries
