"""What segments and tags may look like; every refusal names its field."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.text import MAX_TEXT, check_id, check_text
from memoryos_server.domain.manage.model import NewSegment, Version, is_uuid

MAX_TAGS = 64
MAX_TAG = 64
MAX_SEGMENTS = 10_000
MAX_SOURCES = 10_000
MAX_VERSION = 2**31 - 1
MAX_DEPTH = 64

_HALF = re.compile(r"[\ud800-\udfff]")


def check_tags(tags: Sequence[str], param: str, *, least: int = 0) -> tuple[str, ...]:
    """The tags, each once, in order.

    Raises:
        Invalid: They are fewer than `least` or more than 64, or one is blank, over 64 characters, or has control characters.
    """
    known = tuple(dict.fromkeys(tags))
    if not least <= len(known) <= MAX_TAGS:
        raise Invalid(f"{param} must be {least}..{MAX_TAGS} tags, not {len(known):,}", param=param)
    for index, tag in enumerate(tags):
        if not tag.strip() or len(tag) > MAX_TAG:
            raise Invalid(f"{param}[{index}] must have 1..{MAX_TAG} characters, not only blanks", param=param)
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in tag):
            raise Invalid(f"{param}[{index}] must not have control characters", param=param)
    return known


def check_segment(segment: NewSegment, at: str) -> None:
    """Refuses a segment that cannot be imported; `at` is its place, such as `segments[3]`.

    Raises:
        Invalid: A field is malformed.
    """
    if segment.id is not None and not is_uuid(segment.id):
        raise Invalid(f"{at}.id must be a UUID in lower case, as export gives it", param=f"{at}.id")
    check_text(segment.summary, f"{at}.summary")
    check_tags(segment.tags, f"{at}.tags")
    if segment.heat is not None and not (math.isfinite(segment.heat) and segment.heat >= 0):
        raise Invalid(f"{at}.heat_score must be 0 or more", param=f"{at}.heat_score")
    if segment.version is not None:
        _check_version(segment.version, f"{at}.version")
    if segment.session_id:
        check_id(segment.session_id, f"{at}.session_id")
    if len(segment.source_ids) > MAX_SOURCES:
        raise Invalid(f"{at}.source_ids must be at most {MAX_SOURCES:,} ids", param=f"{at}.source_ids")
    for source in segment.source_ids:
        check_id(source, f"{at}.source_ids")
    if segment.until is not None and segment.since is not None and segment.until < segment.since:
        raise Invalid(f"{at}.until must not be before since", param=f"{at}.until")
    _check_json(segment.data, f"{at}.data", MAX_DEPTH)
    derived = segment.data.get("derived_tags", [])
    if not isinstance(derived, list) or not all(isinstance(tag, str) for tag in derived):
        raise Invalid(f"{at}.data.derived_tags must be an array of strings", param=f"{at}.data_json")
    _check_history(segment, at)


def _check_json(value: Any, at: str, depth: int) -> None:
    # What passes is the same again after it was stored: JSON text can say more than its readers keep.
    bad = ""
    if isinstance(value, dict | list) and not depth:
        bad = f"must be nested at most {MAX_DEPTH} deep"
    elif isinstance(value, str) and _HALF.search(value):
        bad = "must not have halves of surrogate pairs"
    elif isinstance(value, float) and not math.isfinite(value):
        bad = "must have finite numbers"
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        bad = "must have whole numbers of at most 64 bits"
    if bad:
        raise Invalid(f"{at} {bad}", param=f"{at}_json")
    if isinstance(value, dict):
        for key, each in value.items():
            _check_json(key, at, depth)
            _check_json(each, at, depth - 1)
    elif isinstance(value, list):
        for each in value:
            _check_json(each, at, depth - 1)


def _check_version(version: int, param: str) -> None:
    if not 1 <= version <= MAX_VERSION:
        raise Invalid(f"{param} must be 1..{MAX_VERSION}", param=param)


def _check_history(segment: NewSegment, at: str) -> None:
    newer = segment.version
    for index, version in enumerate(segment.history):
        where = f"{at}.history[{index}]"
        _check_older(version, newer, where)
        newer = version.version


def _check_older(version: Version, newer: int | None, at: str) -> None:
    _check_version(version.version, f"{at}.version")
    if newer is not None and version.version >= newer:
        raise Invalid(f"{at}.version must be below {newer}: history is newest first", param=f"{at}.version")
    check_text(version.summary, f"{at}.summary", most=MAX_TEXT)
    check_tags(version.tags, f"{at}.tags")
