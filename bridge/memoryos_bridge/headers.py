"""From HTTP headers to gRPC metadata: what of a request's head reaches the server.

Only what is named here passes: a client cannot set an address, a bridge's secret or any other metadata of ours.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Sequence

from memoryos import tracing
from memoryos.addresses import networks
from memoryos_bridge.errors import invalid
from memoryos_bridge.exchange import Exchange

Metadata = tuple[tuple[str, str], ...]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_VISIBLE = re.compile(r"[\x20-\x7e]*")

# Metadata has little room, and a call with more of it fails without saying which was too long.
_LONGEST_KEY = 1024
_LONGEST_TENANT = 64
_LONGEST_USER = 256 * 4 * 3
"""256 characters of four bytes, percent-encoded."""


def request_id(exchange: Exchange) -> str:
    """The client's `X-Request-ID`, or a new one if it is absent or malformed."""
    values = exchange.headers.get("x-request-id", [])
    given = values[0].decode("latin-1") if len(values) == 1 else ""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def percent(value: str) -> str:
    """A Latin-1 header value as visible ASCII: every other byte percent-encoded, what is encoded already left alone."""
    return "".join(c if "\x21" <= c <= "\x7e" else f"%{ord(c):02X}" for c in value)


def percent_utf8(text: str) -> str:
    """A text as a header value: unchanged if it is visible ASCII, else its UTF-8 percent-encoded."""
    return percent(text.encode("utf-8").decode("latin-1"))


class Forwarding:
    """What of a request's head the server is told."""

    def __init__(self, secret: str, trusted_proxies: Sequence[str]) -> None:
        """Reads the networks of the trusted proxies.

        Raises:
            SettingsError: One is neither an address nor a network.
        """
        self._secret = secret
        self._proxies = networks(trusted_proxies, "bridge.trusted_proxies")

    @property
    def tells_addresses(self) -> bool:
        """Whether the server believes what it is told of clients' addresses."""
        return bool(self._secret)

    def metadata(self, exchange: Exchange) -> Metadata:
        """The metadata of the request's call.

        Raises:
            BridgeError: A header cannot be metadata, or is given twice (400).
        """
        pairs = [("x-request-id", exchange.request_id), ("memoryos-quiet", "1"), *tracing.outgoing().items()]
        authorization = exchange.header("authorization")
        # What is not visible ASCII, or far too long, is no key of ours: such a request is one without a key.
        if authorization and len(authorization) <= _LONGEST_KEY and _VISIBLE.fullmatch(authorization):
            pairs.append(("authorization", authorization))
        tenant = exchange.header("x-tenant-id")
        if tenant is not None:
            if len(tenant) > _LONGEST_TENANT or not _VISIBLE.fullmatch(tenant):
                raise invalid("The header X-Tenant-ID must be 1 to 64 of A-Z a-z 0-9 . _ -", "X-Tenant-ID")
            pairs.append(("x-tenant-id", tenant))
        user = exchange.header("x-user-id")
        if user is not None:
            encoded = percent(user)
            if len(encoded) > _LONGEST_USER:
                raise invalid("The header X-User-ID must have 1 to 256 characters", "X-User-ID")
            pairs.append(("x-user-id", encoded))
        if self._secret:
            address = self.client_address(exchange)
            if address:
                pairs.append(("memoryos-client-address", address))
                pairs.append(("memoryos-bridge-secret", self._secret))
        return tuple(pairs)

    def client_address(self, exchange: Exchange) -> str:
        """The socket's address, or behind trusted proxies the nearest that is none of them; "" if unknown."""
        return str(self._nearest(exchange) or "")

    def _nearest(self, exchange: Exchange) -> Address | None:
        client = exchange.scope.get("client")
        nearest = _address(client[0]) if client else None
        if nearest is None:
            return None
        if self._trusted(nearest):
            hops = b",".join(exchange.headers.get("x-forwarded-for", [])).decode("latin-1").split(",")
            for hop in reversed(hops):
                address = _address(hop.strip())
                if address is None:
                    break
                nearest = address
                if not self._trusted(address):
                    break
        return nearest

    def place(self, exchange: Exchange) -> str:
        """The client's address, of IPv6 its network of 64 bits; "" of loopback, a trusted proxy, or if it is unknown.

        Behind these stand any number of clients. A client has a whole network of IPv6 addresses to pick from.
        """
        address = self._nearest(exchange)
        if address is None or address.is_loopback or self._trusted(address):
            return ""
        return str(address if address.version == 4 else ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))

    def _trusted(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)


def _address(text: str) -> Address | None:
    bare = text
    if text.startswith("["):
        bare = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        bare = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
