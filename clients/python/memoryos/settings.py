"""Every setting of every process, once: name, default, unit and meaning.

Server and bridge run as processes of their own but are configured together (one file, one environment), so their
settings stand in one place; this also lets a misspelt name be told from one that belongs to the other process. One name
three ways: TOML `auth.enabled`, environment `MEMORYOS_AUTH__ENABLED`, flag `--auth-enabled`. Flags win over the
environment, the environment over the file. Secrets have no flag; `<NAME>_FILE` reads one from a file. How they are read is
`configuration`'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# With `as`: whoever uses settings finds these here.
from memoryos.configuration import PREFIX as PREFIX
from memoryos.configuration import Setting as Setting
from memoryos.configuration import SettingsError as SettingsError
from memoryos.configuration import build, declared, home, read, setting

CLIENT_KEY = "MEMORYOS_API_KEY"
"""Where clients find their API key if they are given none. It is no setting of a server."""

_OTHERS = frozenset({"MEMORYOS_CONFIG", "MEMORYOS_FAULT_POINT", CLIENT_KEY})


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of a listener. Files that change are read anew, without a restart."""

    cert_file: str = setting(
        "", "The certificate, followed by those that lead to its authority; empty: no TLS.", unit="PEM file"
    )
    key_file: str = setting("", "The certificate's key, without a password.", unit="PEM file")
    client_ca_file: str = setting(
        "", "Whose certificates clients must show (mTLS); empty: clients need none.", unit="PEM file"
    )


@dataclass(frozen=True, slots=True)
class ServerTlsSettings:
    """TLS between the bridge and the server."""

    enabled: bool = setting(
        False,
        "Whether the bridge speaks TLS with the server; on as well once one of the following is set, and where "
        "`bridge.server` is empty and `server.tls` is set.",
    )
    ca_file: str = setting(
        "", "Whose certificate the server must show; empty: those that the system trusts.", unit="PEM file"
    )
    cert_file: str = setting("", "The bridge's own certificate, for a server that asks for one.", unit="PEM file")
    key_file: str = setting("", "Its key, without a password.", unit="PEM file")
    server_name: str = setting(
        "", "The name in the server's certificate; empty: the one in the server's address.", unit="name"
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The gRPC server."""

    listen: str = setting("127.0.0.1:50051", "Where the gRPC server listens.", unit="host:port")
    metrics_listen: str = setting(
        "127.0.0.1:9464", "Where the server's own Prometheus metrics are; empty: nowhere.", unit="host:port"
    )
    reflection: bool = setting(True, "Whether gRPC reflection answers.")
    max_message_bytes: int = setting(64 * 1024 * 1024, "The largest gRPC message taken.", unit="bytes")
    max_concurrent_calls: int = setting(
        1000,
        "How many calls may be under way at once, probes apart; more are refused with 429 at once. 0: any number.",
        unit="calls",
    )
    drain_seconds: float = setting(
        0.0, "How long the server says NOT_SERVING before it stops taking calls.", unit="seconds"
    )
    grace_seconds: float = setting(10.0, "How long calls under way may take to end at a stop.", unit="seconds")
    reader_idle_seconds: float = setting(
        300.0,
        "How long a client may take nothing of a stream before its call is ended; 0: until the deadline.",
        unit="seconds",
    )
    tls: TlsSettings = TlsSettings()


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The JSON bridge."""

    listen: str = setting("127.0.0.1:8080", "Where the bridge listens.", unit="host:port")
    server: str = setting(
        "",
        "The gRPC servers the bridge speaks to: one, a name that resolves to several, or a list of addresses; empty: "
        "`server.listen`.",
        unit="host:port, or comma-separated address:port",
    )
    secret: str = setting(
        "", "Shared with the server, which believes client addresses only from a bridge that knows it.", secret=True
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Host names answered with auth off, besides localhost.", unit="comma-separated names"
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Peers whose X-Forwarded-For is believed.", unit="comma-separated addresses or networks"
    )
    cors_origins: tuple[str, ...] = setting((), "Origins that browsers may call from.", unit="comma-separated origins")
    max_concurrent_requests: int = setting(
        1000,
        "How many requests may be under way at once, probes apart; more are refused with 429 at once. 0: any number.",
        unit="requests",
    )
    address_share: float = setting(
        0.25,
        "What part of `bridge.max_concurrent_requests` one client address (of IPv6: one network of 64 bits) may have under "
        "way, 0..1; more are refused with 429. Loopback and `bridge.trusted_proxies` may have all.",
        unit="number",
    )
    grace_seconds: float = setting(10.0, "How long requests under way may take to end at a stop.", unit="seconds")
    head_timeout_seconds: float = setting(
        10.0, "How long the head of a request may take to arrive; 0: any time.", unit="seconds"
    )
    body_idle_seconds: float = setting(
        30.0,
        "How long the body of a request may bring nothing; beyond that time it must bring 1 KiB a second, all in all. "
        "0: any time.",
        unit="seconds",
    )
    reader_idle_seconds: float = setting(
        60.0,
        "How long a client may take nothing of what is sent to it before its connection is cut, on Linux; 0: any time.",
        unit="seconds",
    )
    tls: TlsSettings = TlsSettings()
    server_tls: ServerTlsSettings = ServerTlsSettings()


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may call."""

    enabled: bool = setting(False, "Whether calls need an API key.")
    admin_key: str = setting(
        "", "A key with every permission in every tenant, besides those in the store.", secret=True
    )


@dataclass(frozen=True, slots=True)
class DefenseSettings:
    """Who is limited and banned. Loopback, `bridge.trusted_proxies` and the whitelist never are."""

    enabled: bool = setting(
        True, "Whether addresses and keys are limited, and addresses banned. Without `auth.enabled` nobody is."
    )
    address_per_second: float = setting(
        5.0,
        "How many calls without a valid key an address may make in the long run; beyond it 429. 0: any number.",
        unit="calls a second",
    )
    address_burst: int = setting(50, "How many of them at once after a pause.", unit="calls")
    key_per_second: float = setting(
        500.0,
        "How many calls a key may make of one server in the long run; beyond it 429. 0: any number.",
        unit="calls a second",
    )
    key_burst: int = setting(1000, "How many of them at once after a pause.", unit="calls")
    suspicions_per_minute: float = setting(
        30.0,
        "How many calls of a key that look like an attempt at injection are let through; 0: any number.",
        unit="calls a minute",
    )
    window_seconds: float = setting(300.0, "The time within which what leads to a ban is counted.", unit="seconds")
    auth_failures: int = setting(
        20, "So many calls with keys that do not exist ban an address; 0: none do.", unit="calls"
    )
    floods: int = setting(
        100, "So many calls beyond `defense.address_per_second` ban an address; 0: none do.", unit="calls"
    )
    unknown_routes: int = setting(
        30,
        "So many different routes or methods that do not exist, asked for without a valid key, ban an address; 0: none do.",
        unit="routes",
    )
    ban_seconds: tuple[str, ...] = setting(
        ("600", "3600", "86400"),
        "How long the first, second... ban of an address is; the one after the last is permanent.",
        unit="comma-separated seconds",
    )
    forget_days: float = setting(30.0, "After how long an ended ban no longer makes the next one longer.", unit="days")


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """How memory is kept and recalled."""

    pipeline: str = setting(
        "sync",
        "When a write is acknowledged: sync: once it is searchable; async: once it is durable, searchable soon after.",
        choices=("sync", "async"),
    )
    short_term_turns: int = setting(20, "How many recent turns the short-term memory holds.", unit="turns")
    short_term_ttl_seconds: int = setting(
        3600, "How long after the last turn the short-term memory lasts.", unit="seconds"
    )
    recall_deadline_seconds: float = setting(0.15, "How long a chat waits for memory.", unit="seconds")
    remember_deadline_seconds: float = setting(
        0.15, "How long the end of an answer waits until the turn is durable.", unit="seconds"
    )
    inject_tokens: int = setting(
        2000, "The most that memories may cost in a request to a provider; 0: inject nothing.", unit="estimated tokens"
    )
    flush_interval_seconds: float = setting(
        1.0, "How often the searchable side is made durable; what lies between is replayed.", unit="seconds"
    )
    max_backlog: int = setting(
        200_000,
        "How much accepted work may wait; beyond it additions are refused with 429. 0: any amount.",
        unit="turns and changes",
    )
    max_tenant_backlog: int = setting(
        100_000, "The same of one tenant; 0: as much as `memory.max_backlog` allows.", unit="turns and changes"
    )
    session_idle_seconds: int = setting(
        1800, "The idle gap after which a chat without a session id is a new session.", unit="seconds"
    )
    consolidation_model: str = setting(
        "",
        "The upstream's model that summarises what was talked about and helps `extract`; empty: rules alone do.",
        unit="model",
    )


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The LLM provider that chats are passed to."""

    base_url: str = setting(
        "", "An OpenAI-compatible base URL; empty: only the built-in model answers.", unit="URL", env="OPENAI_BASE_URL"
    )
    api_key: str = setting("", "The provider's key.", secret=True, env="OPENAI_API_KEY")
    providers_file: str = setting(
        "",
        "A TOML file of more providers, and of the models that lead to them; it is read again when it changes.",
        unit="file",
    )
    connect_timeout_seconds: float = setting(5.0, "How long a connection may take.", unit="seconds")
    first_byte_timeout_seconds: float = setting(60.0, "How long the first byte of an answer may take.", unit="seconds")
    idle_timeout_seconds: float = setting(60.0, "How long a stream may bring no data event.", unit="seconds")


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """Meaning as vectors."""

    provider: str = setting(
        "local",
        "Who makes vectors: the model that comes along, an OpenAI-compatible server, or the package fastembed.",
        choices=("local", "http", "fastembed"),
    )
    model: str = setting(
        "minilm", "The model as its provider calls it; `none` leaves recall to words alone.", unit="name"
    )
    base_url: str = setting("", "With `http`: where `POST /embeddings` is, without that part.", unit="URL")
    api_key: str = setting("", "With `http`: the provider's key.", secret=True)
    dimension: int = setting(
        0, "With `http`: how long its vectors are; 0: it is asked at the start.", unit="numbers a vector"
    )
    max_chars: int = setting(
        8000, "With `http`: what is sent of a text; a longer one is found by its beginning.", unit="characters"
    )
    threads: int = setting(1, "Threads of one embedding run.", unit="threads")
    cache_dir: str = setting(
        lambda env: str(home(env, "XDG_CACHE_HOME", ".cache") / "memoryos"),
        "Where the model is kept once it is built; it holds nothing of any user and may be deleted.",
        unit="directory",
    )


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """The Redis or Valkey that keeps turns, queue and keys."""

    url: str = setting(
        "",
        "A live Redis or Valkey; empty: the embedded one. A secret, because it may hold a password. Forms: "
        "redis://host:6379/0, unix:///path/to.sock, redis+sentinel://host:26379,host:26379/service/0, "
        "redis+cluster://host:6379,host:6379; rediss in place of redis for TLS.",
        unit="URL",
        secret=True,
    )
    username: str = setting("", "The ACL user, if the URL names none.", unit="name")
    password: str = setting("", "Its password, if the URL has none.", secret=True)
    sentinel_username: str = setting("", "The ACL user of the sentinels, who have users of their own.", unit="name")
    sentinel_password: str = setting("", "The sentinels' password.", secret=True)
    ca_file: str = setting(
        "", "Whose certificates are trusted with TLS; empty: those that the system trusts.", unit="PEM file"
    )
    timeout_seconds: float = setting(3.0, "How long one answer may take.", unit="seconds")


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """Keys at rest."""

    master_key: str = setting(
        "",
        "The key that wraps all others; empty: one is made in `security.key_dir`. A live `redis.url` needs it set.",
        unit="64 hex digits",
        secret=True,
    )
    previous_master_key: str = setting(
        "",
        "What `security.master_key` was before, while `memoryos keys rotate-master` replaces it; empty: it is not replaced.",
        unit="64 hex digits",
        secret=True,
    )
    key_dir: str = setting(
        lambda env: str(home(env, "XDG_CONFIG_HOME", ".config") / "memoryos" / "keys"),
        "Where the master key of embedded stores is kept; must be outside the data directory.",
        unit="directory",
    )
    sealing: bool = setting(
        True,
        "Whether content at rest is encrypted; off only to test that it is. Fixed when the data directory is made.",
    )


@dataclass(frozen=True, slots=True)
class QdrantSettings:
    """A Qdrant server for the searchable side."""

    url: str = setting(
        "",
        "A Qdrant server by its gRPC port, https for TLS; port 6333, which is REST's, stands for 6334; empty: embedded.",
        unit="URL",
    )
    api_key: str = setting("", "Its key.", secret=True)
    ca_file: str = setting(
        "", "Who signed its certificate, if not one that this machine trusts.", unit="file of PEM certificates"
    )
    timeout_seconds: float = setting(5.0, "How long it may take to answer.", unit="seconds")
    collection_prefix: str = setting(
        "memoryos", "What the names of its collections begin with; one for each store that shares it.", unit="name"
    )


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long things are kept, or when they leave the embedded stores' memory."""

    audit_days: int = setting(
        90, "After how long audit events are moved into archive files in the data directory; 0: never.", unit="days"
    )
    usage_days: int = setting(
        90, "How long it is kept what chats cost, by day, tenant, key and model; 0: it is not kept.", unit="days"
    )
    receipts_days: int = setting(
        7, "How long it is kept which memories went into a chat, at most 30; 0: chats have no receipt.", unit="days"
    )


@dataclass(frozen=True, slots=True)
class ConsentSettings:
    """What people agree to."""

    required: bool = setting(
        False,
        "Whether only those are remembered and recalled who granted `data_processing`; else all but who withdrew it.",
    )


@dataclass(frozen=True, slots=True)
class ShieldSettings:
    """What is looked for in texts."""

    injection: str = setting(
        "mark",
        "Attempts to take the model over in chats and memories: off: not looked for; mark: counted and audited; block: "
        "refused with 400, too.",
        choices=("off", "mark", "block"),
    )
    redact: tuple[str, ...] = setting(
        (),
        "What is taken out of what is remembered: secrets, email, phone, card, iban, id_number.",
        unit="comma-separated kinds",
    )
    redact_upstream: bool = setting(
        False,
        "Whether it is taken out of the texts for the model that go to a provider, too, and of nothing else there.",
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """What probes say."""

    ready_when_noop: bool = setting(
        False, "Whether `/health/ready` stays 200 when both stores are down and chat only passes through."
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log."""

    level: str = setting("info", "The least level that is logged.", choices=("debug", "info", "warning", "error"))
    format: str = setting(
        "auto", "JSON lines, or coloured text; auto: text on a terminal.", choices=("auto", "json", "text")
    )


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Traces for OpenTelemetry; needs the extra `otel`."""

    endpoint: str = setting(
        "", "The collector that traces go to, OTLP over gRPC, such as http://127.0.0.1:4317; empty: none.", unit="URL"
    )
    sampling_ratio: float = setting(
        0.1, "The share of traces begun here that is kept, 0..1; for others the caller decides.", unit="number"
    )
    service_name: str = setting(
        "memoryos", "Under which name traces appear, followed by `-server` or `-bridge`.", unit="name"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set."""

    data_dir: str = setting(
        lambda env: str(home(env, "XDG_DATA_HOME", ".local/share") / "memoryos"),
        "Where the embedded stores keep their data.",
        unit="directory",
    )
    insecure: bool = setting(False, "Allows listening beyond loopback without auth.")
    server: ServerSettings = ServerSettings()
    bridge: BridgeSettings = BridgeSettings()
    auth: AuthSettings = AuthSettings()
    defense: DefenseSettings = DefenseSettings()
    memory: MemorySettings = MemorySettings()
    upstream: UpstreamSettings = UpstreamSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    redis: RedisSettings = RedisSettings()
    security: SecuritySettings = SecuritySettings()
    qdrant: QdrantSettings = QdrantSettings()
    retention: RetentionSettings = RetentionSettings()
    consent: ConsentSettings = ConsentSettings()
    shield: ShieldSettings = ShieldSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each came from.

    Attributes:
        settings: The values.
        sources: Dotted name -> `default`, `file PATH`, `environment NAME` or `flag --name`.
        warnings: Environment names that look like ours but are not settings.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


def value_of(settings: Settings, name: str) -> Any:
    """The value of a setting by its dotted name."""
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def known(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Every setting, in the order of this module."""
    env = os.environ if environ is None else environ
    return declared(Settings, env)


def load(
    environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None, config: str | Path | None = None
) -> Loaded:
    """Reads flags, environment and file.

    Args:
        environ: The environment; default `os.environ`.
        flags: Dotted name -> text from the command line.
        config: The TOML file; default `MEMORYOS_CONFIG`, else `memoryos.toml` here if there is one.

    Raises:
        SettingsError: A name is unknown or a value malformed.
    """
    env = dict(os.environ if environ is None else environ)
    path = config or env.get("MEMORYOS_CONFIG")
    if path is None and Path("memoryos.toml").is_file():
        path = "memoryos.toml"
    values, sources, warnings = read(known(env), env, flags or {}, path, others=_OTHERS)
    return Loaded(build(Settings, values), sources, warnings)
