"""Page tokens that only the store reads: a place in a list whose entries are not all for who is given the token."""

from __future__ import annotations

import base64
import binascii

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.stores.keyring import StoreSecrets
from memoryos_server.stores.sealing import SealBroken

_PURPOSE = "page token"


def sealed_token(secrets: StoreSecrets, whose: str, place: str) -> str:
    """The token of the page behind a place; nothing but its length can be read out of it.

    Args:
        secrets: What the store seals with, the same for all servers.
        whose: The list and whose it is; for no other does the token open.
        place: Where the page before ended; "" gives "", the end.
    """
    if not place:
        return ""
    return base64.urlsafe_b64encode(secrets.seal(_PURPOSE, whose, place.encode())).decode().rstrip("=")


def opened_token(secrets: StoreSecrets, whose: str, token: str) -> str:
    """The place that a token stands for; "" for "", the first page.

    Raises:
        Invalid: It was given out for no page of this list.
    """
    if not token:
        return ""
    try:
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return secrets.open(_PURPOSE, whose, sealed).decode()
    except (binascii.Error, ValueError, SealBroken):
        raise Invalid("page_token is none that was given out for this list", param="page_token") from None
