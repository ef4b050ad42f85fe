"""Addresses of listeners, as those who call them need them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from memoryos.configuration import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS = 96


def split_address(address: str, name: str) -> tuple[str, int]:
    """Host and port of `host:port`; the host of `[::1]:80` is `::1`.

    Raises:
        SettingsError: It has no such form; the message names the setting.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"{name}: {address!r} is not host:port")
    return host.strip("[]"), int(port)


def networks(texts: Iterable[str], name: str) -> list[Network]:
    """Addresses and networks; IPv4 ones that are written as IPv6 ones are the IPv4 ones.

    Raises:
        SettingsError: One is neither; the message names the setting.
    """
    found: list[Network] = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise SettingsError(f"{name}: {text!r} is neither an address nor a network") from None
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None:  # ::ffff:10.0.0.0/104 is 10.0.0.0/8; a shorter prefix than 96 leaves no such address
            network = ipaddress.IPv4Network((int(mapped), network.prefixlen - _MAPPED_BITS))
        found.append(network)
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: where it leads is not ours to say
        return False


def reachable(address: str, name: str) -> tuple[str, int]:
    """Where a listener can be reached from here: one that listens everywhere is reached over loopback."""
    host, port = split_address(address, name)
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104  # compared only


def authority(host: str, port: int) -> str:
    """host:port as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def taken(host: str, port: int) -> str | None:
    """Why nothing can listen there, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
