"""Which Redis side a server has, embedded or live, and how it is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from memoryos.settings import Settings, SettingsError
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_url import Endpoint, parse

_ALONE = "embedded"
"""The holder of partitions where the data directory's lock lets nobody else in: it keeps its leases over restarts."""


def live_redis(settings: Settings) -> Endpoint | None:
    """The live Redis-side store that is set, or None for the embedded one.

    Raises:
        SettingsError: What is set cannot be used; the message names the setting, never a password.
    """
    wanted = settings.redis
    if not wanted.url:
        return None
    try:
        endpoint = parse(wanted.url)
    except ValueError as error:
        raise SettingsError(f"redis.url (MEMORYOS_REDIS__URL): {error}") from None
    if wanted.ca_file and not endpoint.tls:
        raise SettingsError("redis.ca_file is set, but redis.url does not ask for TLS: write rediss in it")
    if wanted.ca_file and not Path(wanted.ca_file).is_file():
        raise SettingsError(f"redis.ca_file: there is no file {wanted.ca_file}")
    if wanted.timeout_seconds <= 0:
        raise SettingsError("redis.timeout_seconds must be more than 0")
    return replace(
        endpoint,
        username=endpoint.username or wanted.username,
        password=endpoint.password or wanted.password,
        sentinel_username=wanted.sentinel_username,
        sentinel_password=wanted.sentinel_password,
        ca_file=wanted.ca_file,
        timeout=wanted.timeout_seconds,
    )


def master_keys(settings: Settings) -> MasterKeys:
    """Where the master key comes from: the setting; for the embedded store also the key directory.

    Raises:
        SettingsError: The store is live and no master key is set.
        KeyringError: The setting is malformed, or the key directory lies in the data directory.
    """
    security = settings.security
    if not settings.redis.url:
        return MasterKeys(
            security.master_key,
            security.key_dir,
            Path(settings.data_dir),
            previous=security.previous_master_key,
        )
    if not security.master_key:
        raise SettingsError(
            "redis.url names a live store, whose data several servers share: set security.master_key "
            "(MEMORYOS_SECURITY__MASTER_KEY or MEMORYOS_SECURITY__MASTER_KEY_FILE) to 64 hex digits, the same for all of "
            "them, and keep it: without it nobody can read the data (`openssl rand -hex 32` makes one)"
        )
    return MasterKeys(security.master_key, None, previous=security.previous_master_key)


@asynccontextmanager
async def open_redis(
    settings: Settings, where: str | Endpoint, keys: MasterKeys, expected: Expected
) -> AsyncIterator[RedisStore]:
    """The opened Redis side, live or embedded, until the block ends.

    Args:
        settings: How memory is kept.
        where: The live store; or the URL of the embedded one, which is this process's alone.
        keys: Where master keys come from.
        expected: What this server writes.

    Raises:
        ManifestMismatch, KeyringError, BackendDown: As `RedisStore.connect`.
    """
    memory = settings.memory
    async with RedisStore.connect(
        where,
        keys,
        expected,
        short_term_turns=memory.short_term_turns,
        short_term_ttl_seconds=memory.short_term_ttl_seconds,
        session_idle_seconds=memory.session_idle_seconds,
        usage_days=settings.retention.usage_days,
        receipts_days=settings.retention.receipts_days,
        consent_required=settings.consent.required,
        holder="" if isinstance(where, Endpoint) else _ALONE,
    ) as store:
        yield store
