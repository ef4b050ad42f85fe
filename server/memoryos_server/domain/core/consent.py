"""The purpose on which everything here rests, and what is said where a person does not agree to it."""

from __future__ import annotations

import re

from memoryos_server.domain.core.faults import Forbidden, Invalid

PROCESSING = "data_processing"
"""Who withdraws this is neither remembered nor recalled."""

WITHDRAWN = "consent_withdrawn"
"""The reason given where memory is not used for lack of consent."""

_PURPOSE = re.compile(r"[a-z0-9_.-]{1,64}")


def check_purpose(value: str) -> str:
    """Gives the purpose back.

    Raises:
        Invalid: It is malformed.
    """
    if not _PURPOSE.fullmatch(value):
        raise Invalid(
            "purpose must have 1..64 lower-case letters, digits, underscores, dots or hyphens", param="purpose"
        )
    return value


def withdrawn() -> Forbidden:
    """The fault of a write for a person who does not agree to be remembered."""
    return Forbidden(
        "The user does not consent to data_processing: nothing is remembered",
        reason=WITHDRAWN,
        metadata={"purpose": PROCESSING},
    )
