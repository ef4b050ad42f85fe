"""TLS as a client of the server speaks it: whom it trusts, and what it shows of itself."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memoryos.certificates import check_authorities, check_pair, pem
from memoryos.configuration import SettingsError
from memoryos.settings import Settings

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS with a server. By default the authorities that the system trusts are trusted, and nothing is shown.

    Attributes:
        ca_file: Whose certificates are trusted instead: a PEM file.
        cert_file: The certificate to show, for a server that asks for one: a PEM file.
        key_file: Its key: a PEM file, not encrypted.
        server_name: The name the server's certificate must have, if it is not the one in the address.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    def read(self, name: str = "tls") -> tuple[bytes | None, bytes | None, bytes | None]:
        """What the files hold now: who is trusted, the key, the certificate.

        Args:
            name: What messages call the settings, such as `bridge.server_tls`.

        Raises:
            SettingsError: A file cannot be used.
        """
        if bool(self.cert_file) != bool(self.key_file):
            missing = "key_file" if self.cert_file else "cert_file"
            raise SettingsError(f"{name}.{missing} must be set, too: a certificate is shown together with its key")
        roots = key = chain = None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca_file:
            roots = pem(self.ca_file, f"{name}.ca_file")
            check_authorities(self.ca_file, f"{name}.ca_file", context)
        elif system := ssl.get_default_verify_paths().cafile:
            # gRPC brings a list of its own, in which authorities that the machine's owner added are missing.
            roots = pem(system, f"{name}.ca_file")
        if self.cert_file:
            chain, key = pem(self.cert_file, f"{name}.cert_file"), pem(self.key_file, f"{name}.key_file")
            check_pair(self.cert_file, self.key_file, name, context)
        return roots, key, chain

    def credentials(self, name: str = "tls") -> grpc.ChannelCredentials:
        """What gRPC takes, as the files are now; raises what `read` does."""
        from grpc import ssl_channel_credentials  # late: who only looks at the files pays nothing for gRPC

        return ssl_channel_credentials(*self.read(name))

    def options(self) -> tuple[tuple[str, Any], ...]:
        """Options of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def towards_server(settings: Settings, *, wanted: bool = False, own: bool | None = None) -> Tls | None:
    """How to speak with the server as `bridge.server_tls` has it; None: without TLS.

    Args:
        settings: The settings.
        wanted: TLS is asked for, whatever they say.
        own: The server is the one of these settings; None: it is if `bridge.server` names no other.
    """
    link = settings.bridge.server_tls
    if own is None:
        own = not settings.bridge.server
    made = Tls(link.ca_file, link.cert_file, link.key_file, link.server_name)
    if wanted or link.enabled or made != Tls() or (own and settings.server.tls.cert_file):
        return made
    return None


def channel_security(
    tls: bool | Tls, credentials: grpc.ChannelCredentials | None
) -> tuple[grpc.ChannelCredentials | None, tuple[tuple[str, Any], ...]]:
    """The credentials and further options of a client's channel; None: it speaks no TLS.

    Raises:
        SettingsError: A file cannot be used.
    """
    wanted = Tls() if tls is True else tls
    if not wanted:
        return credentials, ()
    return credentials or wanted.credentials(), wanted.options()
