"""The certificate that a listener shows, read anew when its files change.

It knows files and the standard library's TLS, not who listens: the gRPC server takes the bytes, the bridge the context.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memoryos.configuration import SettingsError

LOOK_SECONDS = 1.0
"""How often, at most, files are looked at for a change."""

Stamp = tuple[tuple[int, int, int], ...]
"""What tells one state of some files from another."""


class Files(Protocol):
    """Where a certificate is: `TlsSettings`, or what has its fields."""

    @property
    def cert_file(self) -> str:
        """The certificate, and what leads from it to its authority."""

    @property
    def key_file(self) -> str:
        """Its key."""

    @property
    def client_ca_file(self) -> str:
        """Whose certificates clients must show; "": they need none."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a handshake needs, as PEM.

    Attributes:
        chain: The certificate, and what leads from it to its authority.
        key: Its key.
        authorities: Whose certificates clients must show, or None.
    """

    chain: bytes
    key: bytes
    authorities: bytes | None


class Certificates:
    """A certificate and its key, as they stand in their files.

    Files that are broken, or amid being replaced, change nothing: what was read before is shown on, and they are looked at
    again. Threads may share it.

    Attributes:
        material: What was read last.
        context: The same as a context for listeners, TLS 1.2 or newer.
    """

    def __init__(self, files: Files, name: str, told: Callable[[str, bool], None]) -> None:
        """Reads the files.

        Args:
            files: Where they are.
            name: What the settings are called, such as `server.tls`.
            told: Told what a change of the files came to, and whether it was taken.

        Raises:
            SettingsError: A file cannot be used; the message names the setting.
        """
        self._files = files
        self._name = name
        self._told = told
        self._lock = threading.Lock()
        self._paths = (files.cert_file, files.key_file, files.client_ca_file)
        self._stamp = stamp(self._paths)
        self._tried = self._stamp
        self._look_at = time.monotonic() + LOOK_SECONDS
        self.material, self.context = _read(files, name)

    def renew(self) -> bool:
        """Reads the files if they have changed, and says whether there is something new. Costs nothing within a second."""
        if time.monotonic() < self._look_at:
            return False
        with self._lock:
            if time.monotonic() < self._look_at:
                return False
            self._look_at = time.monotonic() + LOOK_SECONDS
            found = stamp(self._paths)
            if found == self._stamp:
                return False
            try:
                self.material, self.context = _read(self._files, self._name)
            except SettingsError as error:
                if found != self._tried:  # once for each state of the files
                    self._tried = found
                    self._told(str(error), False)
                return False
            self._stamp = self._tried = found
        self._told(f"{self._name}: the certificate was read anew", True)
        return True

    def listening(self) -> ssl.SSLContext:
        """A context that shows the newest certificate at each handshake."""
        _, context = _read(self._files, self._name)

        def newest(connection: ssl.SSLObject, server: str | None, listener: ssl.SSLContext) -> None:
            self.renew()
            connection.context = self.context

        context.sni_callback = newest  # called for clients that name no server, too
        return context


def serving(files: Files, name: str, told: Callable[[str, bool], None]) -> Certificates | None:
    """The certificate of a listener; None if its settings name none.

    Raises:
        SettingsError: Only a part is named, or a file cannot be used.
    """
    if not (files.cert_file or files.key_file or files.client_ca_file):
        return None
    for part in ("cert_file", "key_file"):
        if not getattr(files, part):
            raise SettingsError(f"{name}.{part} must be set, too: TLS takes a certificate and its key")
    return Certificates(files, name, told)


def itself() -> ssl.SSLContext:
    """A context to look at a listener of our own on this machine: whoever it is, it is told nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def pem(path: str, setting: str) -> bytes:
    """What a PEM file holds.

    Raises:
        SettingsError: It cannot be read, or is no PEM.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 20)
    except OSError as error:
        raise SettingsError(f"{setting}: cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise SettingsError(f"{setting}: {path} is not PEM")
    return data


def check_pair(cert_file: str, key_file: str, name: str, context: ssl.SSLContext) -> None:
    """Loads a certificate and its key into a context.

    Raises:
        SettingsError: They cannot be used together.
    """
    encrypted = False

    def password() -> str:
        nonlocal encrypted
        encrypted = True
        return ""  # nobody is there to be asked

    try:
        context.load_cert_chain(cert_file, key_file, password)
    except (ssl.SSLError, OSError, ValueError) as error:
        if encrypted:
            raise SettingsError(f"{name}.key_file: {key_file} is encrypted; give the key without a password") from None
        reason = getattr(error, "reason", None) or ""
        if "MISMATCH" in reason:
            raise SettingsError(f"{name}.key_file: {key_file} is not the key of {cert_file}") from None
        for setting, path in (("key_file", key_file), ("cert_file", cert_file)):
            pem(path, f"{name}.{setting}")
        what = reason.lower().replace("_", " ") or "they cannot be read"
        raise SettingsError(f"{name}.cert_file: {cert_file} and {key_file} cannot be used: {what}") from None


def check_authorities(path: str, setting: str, context: ssl.SSLContext) -> None:
    """Loads certificates to trust into a context.

    Raises:
        SettingsError: There is none in the file.
    """
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise SettingsError(f"{setting}: {path} holds no certificate that can be read") from None


def _read(files: Files, name: str) -> tuple[Material, ssl.SSLContext]:
    """Both forms, made of one state of the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    before = _bytes(files, name)
    check_pair(files.cert_file, files.key_file, name, context)
    if files.client_ca_file:
        check_authorities(files.client_ca_file, f"{name}.client_ca_file", context)
        context.verify_mode = ssl.CERT_REQUIRED
    if _bytes(files, name) != before:
        raise SettingsError(f"{name}: the files change while they are read")
    return before, context


def _bytes(files: Files, name: str) -> Material:
    authorities = pem(files.client_ca_file, f"{name}.client_ca_file") if files.client_ca_file else None
    chain, key = pem(files.cert_file, f"{name}.cert_file"), pem(files.key_file, f"{name}.key_file")
    return Material(chain, key, authorities)


def stamp(paths: Sequence[str]) -> Stamp:
    """The state that files are in; those that are not there count, too."""
    found = []
    for path in paths:
        try:
            # Where links lead: Kubernetes replaces a secret's files by turning a link.
            stat = os.stat(path)
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)
