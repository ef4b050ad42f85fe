"""Certificates made for a test: an authority, and what it signs."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """Signs certificates and writes them as files."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"{name} of a test")
        made = self._builder(self._name, timedelta(days=2)).add_extension(x509.BasicConstraints(True, None), True)
        self.file = str(directory / f"{name}.pem")
        write(self.file, made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, ends: timedelta = timedelta(days=1), hosts: tuple[str, ...] = ()) -> tuple[str, str]:
        """The files of a new certificate and its key; for `localhost` and 127.0.0.1, unless hosts are named."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_general(host) for host in hosts or ("localhost", "127.0.0.1")]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            self._builder(_name(name), ends, key)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.ExtendedKeyUsage(usage), False)
            .sign(self._key, hashes.SHA256())
        )
        cert_file, key_file = str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key")
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write(key_file, key.private_bytes(serialization.Encoding.PEM, *form))
        write(cert_file, made.public_bytes(serialization.Encoding.PEM))
        return cert_file, key_file

    def _builder(
        self, subject: x509.Name, ends: timedelta, key: ec.EllipticCurvePrivateKey | None = None
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key((key or self._key).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + ends)
        )


def serial(pem: str | bytes) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem).serial_number


def write(path: str, data: bytes) -> None:
    """Replaces a file at once, as those who renew certificates do."""
    fresh = Path(f"{path}.new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def read(path: str) -> bytes:
    """What a file holds."""
    return Path(path).read_bytes()
