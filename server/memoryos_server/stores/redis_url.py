"""Where a Redis-side store is, as its URL says it.

One form for every kind of deployment: `redis://` one server, `redis+sentinel://` a master that sentinels know,
`redis+cluster://` a cluster; `rediss` instead of `redis` speaks TLS; `unix://` is a socket on this machine. What a URL
holds may be a password: no message repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["single", "sentinel", "cluster"]

_KINDS: dict[str, Kind] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_PORT = 6379
_SENTINEL_PORT = 26379
_SOCKET_TIMEOUT = 5.0  # a store on this machine waits for its disk, not for a network

FORMS = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to.sock, redis+sentinel://host:26379,host:26379/service/0 "
    "or redis+cluster://host:6379,host:6379 (rediss+... for TLS; user:password@ before the hosts)"
)
"""What a URL may look like, for messages."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A store and how to reach it.

    Attributes:
        kind: One server, a master behind sentinels, or a cluster.
        hosts: Host and port of the server, of the sentinels, or of some nodes of the cluster; empty with a socket.
        socket: The path of a unix socket, else "".
        service: The name under which sentinels know the master, else "".
        database: The number of the database; a cluster has only 0.
        username: The ACL user, "" for the default one.
        password: Its password, "" for none.
        sentinel_username: As `username`, at the sentinels.
        sentinel_password: As `password`, at the sentinels.
        tls: Whether connections are encrypted; then the server's certificate and name are checked.
        ca_file: Whose certificates are trusted, "" for those the system trusts.
        timeout: Seconds that one answer may take.
    """

    kind: Kind = "single"
    hosts: tuple[tuple[str, int], ...] = ()
    socket: str = ""
    service: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    timeout: float = 3.0

    def __str__(self) -> str:
        """The URL without anybody's name or password."""
        if self.socket:
            return f"unix://{self.socket}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{service}" + (f"/{self.database}" if self.database else "")


def parse(url: str) -> Endpoint:
    """What a URL says.

    Raises:
        ValueError: It has none of the forms; the message says what is wrong and never repeats the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"it is no URL: write {FORMS}") from None
    if parts.fragment:
        raise ValueError("it has a #: percent-encode special characters of names and passwords")
    if parts.scheme == "unix":
        return _socket(unquote(parts.path), parts.query, parts.netloc)
    base, _, kind = parts.scheme.partition("+")
    if base not in ("redis", "rediss") or kind not in _KINDS:
        raise ValueError(f"it does not begin with a scheme that is known: write {FORMS}")
    if parts.query:
        raise ValueError("it has a ?query: what can be set besides the URL are the other redis.* settings")
    who, _, places = parts.netloc.rpartition("@")
    username, _, password = who.partition(":")
    found = _KINDS[kind]
    hosts = tuple(_host(place, _SENTINEL_PORT if found == "sentinel" else _PORT) for place in places.split(","))
    if found == "single" and len(hosts) > 1:
        raise ValueError("it names several hosts: write redis+cluster:// or redis+sentinel:// if that is meant")
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    service = ""
    if found == "sentinel":
        service = path.pop(0) if path else ""
        if not service:
            raise ValueError("it does not name the master's service: redis+sentinel://host:26379,host:26379/service")
    database = _database(path)
    if found == "cluster" and database:
        raise ValueError("it names a database: a cluster has only database 0")
    return Endpoint(
        kind=found,
        hosts=hosts,
        service=service,
        database=database,
        username=unquote(username),
        password=unquote(password),
        tls=base == "rediss",
    )


def _socket(path: str, query: str, netloc: str) -> Endpoint:
    who, _, host = netloc.rpartition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    database = options.pop("db", "0")
    if host or not path or options or not database.isdecimal():
        raise ValueError("it is no socket: write unix:///path/to.sock or unix:///path/to.sock?db=1")
    username, _, password = who.partition(":")
    return Endpoint(
        socket=path,
        database=int(database),
        username=unquote(username),
        password=unquote(password),
        timeout=_SOCKET_TIMEOUT,
    )


def _host(place: str, default: int) -> tuple[str, int]:
    if place.startswith("["):
        host, closed, rest = place[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
        good = bool(closed) and (not rest or rest.startswith(":"))
    else:
        host, _, port = place.partition(":")
        good = ":" not in port
    if not host or not good or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ValueError("a host in it is not host or host:port (an IPv6 address stands in brackets)")
    return host, int(port) if port else default


def _database(path: list[str]) -> int:
    if path and path[-1] == "":
        path = path[:-1]
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdecimal():
        raise ValueError("what follows the hosts is not the number of a database")
    return int(path[0])
