"""From an HTTP request to a request message: path, query and body, as the method's route says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from google.protobuf.message import Message

from memoryos.schema import Method, Route
from memoryos_bridge.codec import Codec, FieldCodec, loads, refusal
from memoryos_bridge.errors import BridgeError, invalid
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.scalars import Misfit

_MASK = "google.protobuf.FieldMask"


class Binding:
    """One route's way from HTTP to its request message."""

    def __init__(self, codec: Codec, method: Method, route: Route) -> None:
        """Compiles the route."""
        self._class = method.request_class
        self._limit = method.max_body_bytes
        self._route = route
        self._codec = codec.of(method.descriptor.input_type)
        by_proto = self._codec.by_proto
        self._path = [by_proto[name] for name in route.parameters]
        named = by_proto[route.body] if route.body not in ("", "*") else None
        self._named = named
        self._exact = self._codec.exact
        self._mask = ""
        if route.verb == "PATCH":
            masks = [f.field.name for f in self._codec.fields.values() if _is(f, _MASK)]
            self._mask = masks[0] if masks else ""
        hidden = {self._mask} if self._mask else set()
        self._leave_out = frozenset(hidden)
        in_path = {f.name for f in self._path}
        body_names = {named.name} if named else set()
        # With `body: "*"` the query takes nothing, but on DELETE, whose body many clients cannot send.
        open_query = route.body != "*" or route.verb == "DELETE"
        self._query: dict[str, FieldCodec] = {
            name: f
            for name, f in self._codec.fields.items()
            if open_query and name not in in_path | body_names | hidden and f.kind is not None and not f.is_map
        }

    @property
    def query(self) -> Mapping[str, FieldCodec]:
        """The query parameters taken, by name."""
        return self._query

    @property
    def path(self) -> Sequence[FieldCodec]:
        """The path's parameters, in order."""
        return self._path

    @property
    def body(self) -> tuple[FieldCodec, ...]:
        """The fields of the body; for a named body that one field."""
        if self._named is not None:
            return (self._named,)
        if self._route.body != "*":
            return ()
        in_path = {f.name for f in self._path}
        return tuple(f for n, f in self._codec.fields.items() if n not in in_path | self._leave_out)

    def rest_path(self, param: str | None) -> str | None:
        """What REST calls a field that the server named."""
        return self._codec.rest_path(param) if param else None

    async def request(self, exchange: Exchange, parts: Sequence[str]) -> Message:
        """The request message.

        Args:
            exchange: The HTTP request.
            parts: The raw path segments of the parameters, in the order of the template.

        Raises:
            BridgeError: Something does not fit (400), the body is too large (413) or no JSON (415).
            ClientGone: The client left.
        """
        message = self._class()
        try:
            if exchange.verb not in ("GET", "HEAD"):
                body = await exchange.body(self._limit)
                if body:
                    self._read_body(exchange, message, body)
                elif self._mask:
                    getattr(message, self._mask).SetInParent()
            self._read_query(message, exchange.scope["query_string"])
            for field, part in zip(self._path, parts, strict=True):
                self._read_path(message, field, part)
        except Misfit as misfit:
            raise refusal(misfit) from None
        except ValueError:
            # protobuf's own checks, should one be stricter than ours
            raise invalid("The request holds a value that cannot be stored") from None
        return message

    def _read_body(self, exchange: Exchange, message: Any, body: bytes) -> None:
        check_json(exchange)
        value = loads(body, exact=self._exact)
        if self._named is not None:
            given = []
            if value is not None:
                self._named.read(message, value)
                given = self._names(value)
        elif self._route.body == "*":
            given = self._codec.fill(message, value, leave_out=self._leave_out)
        else:
            given = self._codec.fill(message, value, leave_out=frozenset(self._codec.fields))
        if self._mask:
            in_path = set(self._route.parameters)
            mask = getattr(message, self._mask)
            mask.SetInParent()
            mask.paths.extend(name for name in given if name not in in_path)

    def _names(self, value: Any) -> list[str]:
        inner = self._named.message if self._named is not None else None
        if inner is None or type(value) is not dict:
            return []
        return [inner.fields[key].field.name for key, item in value.items() if item is not None]

    def _read_query(self, message: Any, query: bytes) -> None:
        if not query:
            return
        given: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict")
        except ValueError:
            raise invalid("The query string is not percent-encoded UTF-8") from None
        for name, text in pairs:
            given.setdefault(name, []).append(text)
        for name, texts in given.items():
            field = self._query.get(name)
            if field is None:
                known = ", ".join(self._query)
                raise Misfit(
                    f"is not a query parameter here; {f'known: {known}' if known else 'there are none'}", whole=True
                ).within(name)
            if _is_set(message, field):
                raise Misfit("is given in the body and in the query", whole=True).within(name)
            try:
                field.parse(message, texts)
            except Misfit as misfit:
                raise misfit.within(name) from None

    def _read_path(self, message: Any, field: FieldCodec, part: str) -> None:
        before = getattr(message, field.field.name) if _is_set(message, field) else None
        try:
            text = unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError:
            raise Misfit("percent-encoded UTF-8").within(field.name) from None
        try:
            field.parse(message, [text])
        except Misfit as misfit:
            raise misfit.within(field.name) from None
        if before is not None and before != getattr(message, field.field.name):
            raise Misfit("differs between path and body", whole=True).within(field.name)


def check_json(exchange: Exchange) -> None:
    """Refuses a body that does not say it is JSON.

    Raises:
        BridgeError: It says something else (415).
    """
    kind, _, rest = (exchange.header("content-type") or "").partition(";")
    kind = kind.strip().lower()
    charset = rest.lower().replace(" ", "").replace('"', "").partition("charset=")[2].partition(";")[0]
    json_like = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    encoding = (exchange.header("content-encoding") or "identity").strip().lower()
    if not json_like or charset not in ("", "utf-8", "utf8") or encoding != "identity":
        raise BridgeError(
            415,
            "The body must be JSON in UTF-8: send Content-Type: application/json",
            "unsupported_media_type",
            param="Content-Type",
        )


def _is(field: FieldCodec, full_name: str) -> bool:
    message = field.field.message_type
    return message is not None and message.full_name == full_name


def _is_set(message: Any, field: FieldCodec) -> bool:
    if field.field.has_presence:
        return bool(message.HasField(field.field.name))
    return bool(getattr(message, field.field.name))
