"""Headers that tell browsers what not to do with an answer. Other clients take no notice of them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from memoryos_bridge.exchange import Exchange
from memoryos_bridge.gate import LOCAL, host_name

GUARDS: Mapping[str, str] = {
    # An answer is what its Content-Type says, also where a provider has chosen it.
    "X-Content-Type-Options": "nosniff",
    # Paths hold ids.
    "Referrer-Policy": "no-referrer",
    # Answers hold what people said; streams and the documentation's files say otherwise themselves.
    "Cache-Control": "no-store",
    # No answer but the documentation is a page: whatever one holds, a browser runs none of it and shows it in no frame.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer, unless it brings its own."""

_HSTS = "max-age=31536000"
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class Guards:
    """Adds the headers.

    Args:
        tls: The bridge itself speaks TLS: browsers are told to come back with it only.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self._tls = tls

    def put(self, exchange: Exchange) -> None:
        """Puts them on an exchange's answer."""
        exchange.extra.update(GUARDS)
        if self._tls:
            named = [host_name(value.decode("latin-1")) for value in exchange.headers.get("host", [])]
            # A browser would hold every other program that serves on `localhost` to it, whatever its port.
            if named and not any(name in LOCAL for name in named):
                exchange.extra["Strict-Transport-Security"] = _HSTS


def page_policy(page: bytes) -> str:
    """The policy of a page of ours: its own files, the scripts that stand in it, and nothing else."""
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page))
    scripts = " ".join(("'self'", *(f"'sha256-{value}'" for value in hashes)))
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
