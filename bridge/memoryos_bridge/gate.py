"""Who an open bridge answers: with auth off, only requests that were meant for this machine.

A web page in a browser of this machine can reach a loopback address under a name of its own (DNS rebinding); its
requests carry that name in `Host`. And a bridge that listens beyond loopback serves nobody while the server needs no
key.
"""

from __future__ import annotations

from memoryos.addresses import is_loopback, split_address
from memoryos.settings import Settings
from memoryos_bridge.errors import BridgeError
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.remote import Remote

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The names of this machine in `Host`."""

OPEN_BEYOND_LOOPBACK = (
    "bridge.listen {listen} can be reached from other machines, and the server has auth off: "
    "set auth.enabled on the server, listen on 127.0.0.1, or set insecure"
)


class Gate:
    """Refuses what an open bridge does not answer."""

    def __init__(self, settings: Settings, remote: Remote) -> None:
        """Reads the settings."""
        self._remote = remote
        self._hosts = LOCAL | {host.lower() for host in settings.bridge.allowed_hosts}
        host, _ = split_address(settings.bridge.listen, "bridge.listen")
        self._exposed = not is_loopback(host) and not settings.insecure

    async def check(self, exchange: Exchange, public: bool) -> None:
        """Lets a request pass or refuses it.

        Args:
            exchange: The request.
            public: Its route needs no key, so that probes pass while the server cannot be asked.

        Raises:
            BridgeError: It was meant for another host (403), or the server cannot be asked (503).
        """
        named = [host_name(value.decode("latin-1")) for value in exchange.headers.get("host", [])]
        if not self._exposed and named and all(name in self._hosts for name in named):
            return
        info = await self._remote.info()
        if info is None:
            if public:
                return
            raise BridgeError(
                503, "The MemoryOS server cannot be reached", "server_unavailable", headers={"Retry-After": "1"}
            )
        if info.auth_enabled:
            return
        if self._exposed:
            raise BridgeError(
                403,
                "This bridge can be reached from other machines, and its server has auth off",
                "host_not_allowed",
            )
        raise BridgeError(
            403,
            "With auth off, only requests to localhost and to names in bridge.allowed_hosts are answered",
            "host_not_allowed",
            param="Host",
        )


def host_name(value: str) -> str:
    """The lower-case name of a Host header, without its port; `[::1]` keeps its brackets."""
    text = value.strip().lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0]
