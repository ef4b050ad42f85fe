"""`GET /openapi.json` and `GET /docs`: the description of the API and a page that shows it, nothing from a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import orjson
from fastapi.openapi.docs import get_swagger_ui_html

from memoryos.schema import Method
from memoryos_bridge.codec import Codec
from memoryos_bridge.errors import BridgeError
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.guards import page_policy
from memoryos_bridge.openapi import document
from memoryos_bridge.routes import Entry

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}


class _Fixed:
    """Serves one text, made at its first use."""

    def __init__(self, methods: Sequence[Method], codec: Codec) -> None:
        self._methods = methods
        self._codec = codec
        self._body = b""

    async def openapi(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves the OpenAPI document."""
        if not self._body:
            self._body = orjson.dumps(document(self._methods, self._codec))
        await exchange.answer(200, self._body, headers={"Cache-Control": "no-cache"})

    async def page(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves the page."""
        response = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="MemoryOS",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon.png",
            # The page would have its document checked by a service on the internet.
            swagger_ui_parameters={"validatorUrl": None},
        )
        body = bytes(response.body)
        headers = {"Content-Security-Policy": page_policy(body), "Cache-Control": "no-cache"}
        await exchange.answer(200, body, content_type="text/html; charset=utf-8", headers=headers)

    async def asset(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves a file of the page.

        Raises:
            BridgeError: There is no such file, or the wheel that brings them is not installed (404).
        """
        folder = _folder()
        kind = _ASSETS.get(parts[0])
        if folder is None or kind is None:
            raise BridgeError(404, "There is no such file", "not_found")
        await exchange.answer(
            200,
            (folder / parts[0]).read_bytes(),
            content_type=kind,
            headers={"Cache-Control": "public, max-age=86400"},
        )


def _folder() -> Path | None:
    """Where the installed wheel keeps the page's files; found without importing it."""
    spec = importlib.util.find_spec("fastapi_offline")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "static"


def entries(methods: Sequence[Method], codec: Codec) -> list[Entry]:
    """The routes of the description and its page; they need no key."""
    fixed = _Fixed(methods, codec)
    return [
        Entry("GET", "/openapi.json", fixed.openapi, public=True),
        Entry("GET", "/docs", fixed.page, public=True),
        Entry("GET", "/docs/{asset}", fixed.asset, public=True),
    ]
