"""How the defense is put together: what the settings hold for too much, and whom they spare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from memoryos.addresses import networks
from memoryos.settings import Settings, SettingsError
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.defense.gcra import Rate
from memoryos_server.domain.defense.guard import Guard, Rules
from memoryos_server.domain.defense.records import Records
from memoryos_server.domain.defense.sharing import Defense
from memoryos_server.domain.ports.defense import Ban
from memoryos_server.stores.redis import RedisStore

_MINUTE = 60.0
_DAY = 86_400.0


def rules(settings: Settings) -> Rules:
    """What the defense holds for too much.

    Raises:
        SettingsError: A setting of it cannot be used.
    """
    chosen = settings.defense
    try:
        ban_seconds = tuple(float(text) for text in chosen.ban_seconds)
    except ValueError:
        raise SettingsError("defense.ban_seconds: numbers of seconds, with commas between them") from None
    if any(not 0 < seconds < float("inf") for seconds in ban_seconds):
        raise SettingsError("defense.ban_seconds: each must be above 0")
    for name in ("window_seconds", "forget_days"):
        if getattr(chosen, name) <= 0:
            raise SettingsError(f"defense.{name}: must be above 0")
    for name, value in asdict(chosen).items():
        if isinstance(value, (int, float)) and value < 0:
            raise SettingsError(f"defense.{name}: must not be below 0")
    return Rules(
        # Without keys nobody can tell who is who, and nobody but this machine calls.
        active=chosen.enabled and settings.auth.enabled,
        address=Rate(chosen.address_per_second, chosen.address_burst),
        key=Rate(chosen.key_per_second, chosen.key_burst),
        suspicions=Rate(chosen.suspicions_per_minute / _MINUTE, math.ceil(chosen.suspicions_per_minute)),
        auth_failures=chosen.auth_failures,
        floods=chosen.floods,
        unknown_routes=chosen.unknown_routes,
        window=chosen.window_seconds,
        ban_seconds=ban_seconds,
        forget=chosen.forget_days * _DAY,
    )


def make_defense(settings: Settings, redis: RedisStore, put: Callable[[AuditEvent], None]) -> Defense:
    """The defense, not opened yet.

    Args:
        settings: What is too much, and whom it spares.
        redis: What servers share.
        put: Takes the records of bans and of keys that are refused.

    Raises:
        SettingsError: A setting of it cannot be used.
    """
    trusted = networks(settings.bridge.trusted_proxies, "bridge.trusted_proxies")
    records = Records(put)

    def imposed(ban: Ban) -> None:
        records.banned(ban)
        made.imposed(ban)

    made = Defense(Guard(rules(settings), trusted, imposed=imposed, limited=records.limited), redis.defense)
    return made
