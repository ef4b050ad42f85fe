"""The channel to the server, made anew when the files of its TLS change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc

from memoryos.certificates import LOOK_SECONDS, Stamp, stamp
from memoryos.settings import SettingsError
from memoryos.tls import Tls

SERVER_TLS = "bridge.server_tls"
"""The settings of TLS with the server."""

_LONGEST_CALL_SECONDS = 3_700.0
"""How long calls under way keep a channel that was replaced."""


class Link:
    """A channel, and those that it replaced and that still have calls under way.

    Attributes:
        channel: The channel for new calls.
    """

    def __init__(self, target: str, options: Sequence[tuple[str, Any]], tls: Tls | None) -> None:
        """Makes the channel; must run inside the event loop that uses it.

        Raises:
            SettingsError: A file of `tls` cannot be used.
        """
        self._target = target
        self._options = options
        self._tls = tls
        self._stamp = self._look()
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._closing: set[asyncio.Task[None]] = set()
        self._replaced: set[grpc.aio.Channel] = set()
        self.channel = self._open()

    def renewed(self) -> bool:
        """Whether there is a new channel, because a file has changed. Costs nothing without TLS, and within a second."""
        if self._tls is None or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_SECONDS
        found = self._look()
        if found == self._stamp:
            return False
        try:
            channel = self._open()
        except SettingsError:
            return False  # broken, or amid being replaced: the old one serves, and they are looked at again
        self._stamp = found
        old, self.channel = self.channel, channel
        self._replaced.add(old)
        closing = asyncio.get_running_loop().create_task(self._end(old))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return True

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        for closing in self._closing:
            closing.cancel()
        for channel in (*self._replaced, self.channel):
            await channel.close()

    async def _end(self, channel: grpc.aio.Channel) -> None:
        await channel.close(_LONGEST_CALL_SECONDS)
        self._replaced.discard(channel)

    def _open(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._target, self._options)
        options = [*self._options, *self._tls.options()]
        return grpc.aio.secure_channel(self._target, self._tls.credentials(SERVER_TLS), options)

    def _look(self) -> Stamp:
        return stamp((self._tls.ca_file, self._tls.cert_file, self._tls.key_file)) if self._tls else ()
