"""Looks at a Qdrant server for `memoryos doctor`: makes nothing, and says what is wrong and how to mend it.

`python -m memoryos_server.stores.qdrant_probe` reads the settings `qdrant.*` and `patience` (seconds) as JSON from its
standard input, and writes `state` (`ok`, `warning` or `broken`), `text` and `hint` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import grpc

from memoryos.addresses import is_loopback
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.qdrant_link import KeyRefused, Place, QdrantLink, QdrantRefused
from memoryos_server.stores.qdrant_schema import Schema, SchemaDiffers


async def probe(settings: Mapping[str, Any]) -> dict[str, str]:
    """What was found."""
    try:
        place = Place.of(settings["url"], api_key=settings["api_key"], ca_file=settings["ca_file"])
        link = QdrantLink(place, deadline=settings["patience"])
    except ValueError as error:
        return _broken(f"qdrant.url: {error}", "correct qdrant.url")
    except OSError as error:
        return _broken(f"qdrant.ca_file: {error.strerror}: {settings['ca_file']}", "correct qdrant.ca_file")
    at = f"{place.host}:{place.port}"
    try:
        text = await Schema(settings["collection_prefix"], {}, "").examine(link)
    except SchemaDiffers as error:
        return _broken(f"{at}: {error}", "")
    except KeyRefused:
        return _broken(f"{at} refuses the key", "set qdrant.api_key (MEMORYOS_QDRANT__API_KEY)")
    except (BackendDown, QdrantRefused) as error:
        return _unreachable(at, place, error)
    finally:
        await link.close()
    if place.api_key and not place.tls and not is_loopback(place.host):
        text = f"{text}; the key goes over the network in the clear"
        return {"state": "warning", "text": text, "hint": "give qdrant.url as https"}
    return {"state": "ok", "text": f"{at}: {text}", "hint": ""}


def _unreachable(at: str, place: Place, error: Exception) -> dict[str, str]:
    cause = error.__cause__
    details = (cause.details() or "" if isinstance(cause, grpc.aio.AioRpcError) else "") or str(error)
    said = details.lower()
    if any(word in said for word in ("ssl", "tls", "handshake", "certificate")):
        hint = "set qdrant.ca_file to who signed its certificate, or give qdrant.url as it is served (http or https)"
        return _broken(f"{at} cannot be spoken to over TLS: {details}", hint)
    if isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _broken(f"{at} does not answer in time", "see whether it runs, and whether a firewall lies between")
    if any(word in said for word in ("http2", "http/2", "unimplemented", "unexpected http", "socket closed")):
        other = "https" if not place.tls else "http"
        hint = f"name its gRPC port, by default 6334; or it is served over {other}"
        return _broken(f"{at} does not speak Qdrant's gRPC: {details}", hint)
    return _broken(f"{at} cannot be reached: {details}", "start it, or correct qdrant.url (MEMORYOS_QDRANT__URL)")


def _broken(text: str, hint: str) -> dict[str, str]:
    return {"state": "broken", "text": text, "hint": hint}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(json.load(sys.stdin)))))
