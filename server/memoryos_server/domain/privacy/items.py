"""What of a person's data stands in an export: plain JSON values, with the names that the API has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.ports import ApiKey, Record, Turn


def moment(value: datetime | None) -> str | None:
    """A time as RFC 3339 text in UTC, None for none."""
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def of_turn(turn: Turn) -> Mapping[str, Any]:
    """An episode."""
    return {
        "id": turn.id,
        "event_id": turn.event_id,
        "session_id": turn.session_id,
        "role": turn.role,
        "name": turn.name,
        "content": turn.content,
        "timestamp": moment(turn.timestamp),
    }


def of_record(record: Record) -> Mapping[str, Any]:
    """A segment, fact or typed memory, with every version of it."""
    return {
        "id": record.id,
        "type": record.type,
        "content": record.text,
        "version": record.version,
        "tags": list(record.tags),
        "source_ids": list(record.sources),
        "session_id": record.session_id,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
        "since": moment(record.since),
        "until": moment(record.until),
        "data": dict(record.data),
        "history": [dict(version) for version in record.history],
    }


def of_event(event: AuditEvent) -> Mapping[str, Any]:
    """An audit event."""
    return {
        "id": event.id,
        "timestamp": moment(event.timestamp),
        "event_type": event.event_type,
        "user_id": event.user_id,
        "resource": event.resource,
        "action": event.action,
        "outcome": event.outcome,
        "details": event.details,
        "ip_address": event.address,
    }


def of_key(key: ApiKey) -> Mapping[str, Any]:
    """An API key, which is itself not known."""
    shown = {field.name: getattr(key, field.name) for field in fields(key)}
    shown["permissions"] = sorted(key.permissions)
    return {name: moment(value) if isinstance(value, datetime) else value for name, value in shown.items()}
