"""Requests to providers over HTTP. Bytes go out and come back as they are, and the caller's own authorization never gets here."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp

from memoryos import tracing
from memoryos_server.domain.chat.sse import SseEvent, SseSplitter, message_of
from memoryos_server.domain.core.faults import DeadlineExceeded, Fault, Upstream, UpstreamRejected
from memoryos_server.tools.llm.provider import Provider

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
MODELS_TIMEOUT_SECONDS = 5.0

_REJECTED = frozenset({400, 404, 413, 422, 429})
_NO_STREAM = frozenset({"application/json", "text/html"})
_CUT = (aiohttp.ClientError, ConnectionError, OSError)


class AttemptFailed(Exception):
    """An attempt failed before its first byte.

    Attributes:
        fault: What the caller is told if nothing else helps.
        again: Whether the same provider may do better at once.
        elsewhere: Whether another provider may do better.
        wait: Seconds after which the provider wants to be asked again, or None.
    """

    def __init__(self, fault: Fault, *, again: bool, elsewhere: bool, wait: float | None = None) -> None:
        """Keeps what may be done."""
        super().__init__(fault.message)
        self.fault = fault
        self.again = again
        self.elsewhere = elsewhere
        self.wait = wait


class Response:
    """An answer that has begun. Whoever has one hangs up, whatever happens."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, idle: float) -> None:
        """Keeps the answer, its first bytes, and how many seconds may pass without more."""
        self._response = response
        self._idle = idle
        self.status = response.status
        self.first = first
        self.content_type = response.headers.get("Content-Type", "application/json")

    async def whole(self) -> bytes:
        """All of its bytes.

        Raises:
            Upstream: It broke off, or is too large.
            DeadlineExceeded: It fell silent.
        """
        pieces, size = [self.first], len(self.first)
        try:
            while True:
                async with asyncio.timeout(self._idle):
                    piece = await _some(self._response)
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise Upstream("The provider's answer is too large")
        except TimeoutError:
            raise DeadlineExceeded("The provider fell silent amid its answer") from None
        except _CUT:
            raise Upstream("The provider's answer broke off") from None

    async def pieces(self, is_data: Callable[[SseEvent], bool] = lambda event: True) -> AsyncGenerator[bytes, None]:
        """Its bytes as they come.

        Args:
            is_data: Whether an event is more than a sign of life.

        Raises:
            Upstream: It broke off.
            DeadlineExceeded: It sent no data for too long.
        """
        clock = asyncio.get_running_loop().time
        events = SseSplitter()
        # Only the time spent waiting for the provider counts, and only data ends it: a comment says that a proxy
        # lives, not that an answer is coming.
        waited = 0.0
        events.feed(self.first)
        yield self.first
        try:
            while True:
                since = clock()
                async with asyncio.timeout(self._idle - waited):
                    piece = await _some(self._response)
                if not piece:
                    return
                alive = any(map(is_data, events.feed(piece))) or events.overflowed
                waited = 0.0 if alive else waited + clock() - since
                yield piece
        except TimeoutError:
            raise DeadlineExceeded("The provider fell silent amid its answer") from None
        except _CUT:
            raise Upstream("The provider's answer broke off") from None

    def hang_up(self) -> None:
        """Closes the connection at once, unless the answer is complete and the connection went back to the pool."""
        _hang_up(self._response)


class Transport:
    """The connections to all providers, whatever proxies the environment names. Open it with `async with`."""

    def __init__(self) -> None:
        """Starts closed."""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            # Compression is not asked for: a provider's bytes are the client's bytes.
            headers={"Accept-Encoding": "identity", "User-Agent": "memoryos"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, provider: Provider, path: str, body: bytes, *, stream: bool) -> Response:
        """An answer that has begun with status 200, its first bytes read.

        Raises:
            AttemptFailed: There is none.
        """
        response: aiohttp.ClientResponse | None = None
        begun = False
        try:
            async with asyncio.timeout(provider.first_byte_timeout_seconds):
                response = await self._http.post(
                    _url(provider, path),
                    data=io.BytesIO(body),
                    headers={
                        **_headers(provider),
                        "Content-Type": "application/json",
                        "Accept": "text/event-stream" if stream else "application/json",
                        **tracing.outgoing(),
                    },
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=provider.connect_timeout_seconds),
                )
                if response.status != 200:
                    raise await _refusal(response, provider)
                if stream and response.content_type in _NO_STREAM:
                    raise AttemptFailed(Upstream("The provider does not stream"), again=False, elsewhere=True)
                first = await _some(response)
                if not first:
                    raise _passing(Upstream("The provider's answer is empty"))
                begun = True
                return Response(response, first, provider.idle_timeout_seconds)
        except TimeoutError:
            raise _passing(DeadlineExceeded("The provider did not answer in time")) from None
        except ValueError:  # an invalid URL too
            fault = Upstream("The provider's address, or a header for it, is malformed")
            raise AttemptFailed(fault, again=False, elsewhere=True) from None
        except _CUT:
            raise _passing(Upstream("The provider cannot be reached")) from None
        finally:
            if response is not None and not begun:
                _hang_up(response)

    async def get(self, provider: Provider, path: str) -> object | None:
        """The JSON value of a page; None if the provider has no such page.

        Raises:
            Upstream: It cannot be had.
        """
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self._http.get(_url(provider, path), headers=_headers(provider), allow_redirects=False) as response,
            ):
                if response.status in (404, 405, 501):
                    return None
                if response.status != 200:
                    raise Upstream(f"The provider's list of models answers {response.status}")
                value: object = json.loads(await _read(response, MAX_ANSWER_BYTES))
                return value
        except (TimeoutError, ValueError, RecursionError, *_CUT):
            raise Upstream("The provider's list of models cannot be read") from None

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the providers are not open")
        return self._session


def _url(provider: Provider, path: str) -> str:
    return provider.base_url.rstrip("/") + path


def _headers(provider: Provider) -> dict[str, str]:
    headers = dict(provider.headers)
    if provider.api_key and provider.auth == "bearer":
        headers["Authorization"] = f"Bearer {provider.api_key}"
    elif provider.api_key and provider.auth != "none":
        headers[provider.auth] = provider.api_key
    return headers


def _passing(fault: Fault, wait: float | None = None) -> AttemptFailed:
    return AttemptFailed(fault, again=True, elsewhere=True, wait=wait)


async def _refusal(response: aiohttp.ClientResponse, provider: Provider) -> AttemptFailed:
    """What an error status means."""
    status = response.status
    wait = _retry_after(response.headers)
    if status in _REJECTED:
        try:
            body = await _read(response, MAX_ERROR_BYTES)
        except (TimeoutError, *_CUT):
            body = b""  # the status says enough
        rejected = _rejected(body, status, wait, provider)
        if status != 429:
            # A model may be gone here and not elsewhere.
            return AttemptFailed(rejected, again=False, elsewhere=status == 404)
        return AttemptFailed(rejected, again=rejected.code != "insufficient_quota", elsewhere=True, wait=wait)
    if status == 408:
        return _passing(DeadlineExceeded("The provider ran out of time"), wait)
    about = {"upstream_status": str(status)}
    if status in (401, 403):
        fault = Upstream("The provider refused the key that it is asked with", metadata=about)
        return AttemptFailed(fault, again=False, elsewhere=True)
    fault = Upstream(f"The provider failed with status {status}", retry_after=wait, metadata=about)
    return AttemptFailed(fault, again=status >= 500, elsewhere=True, wait=wait)


def _rejected(body: bytes, status: int, wait: float | None, provider: Provider) -> UpstreamRejected:
    error = _error_of(body)
    code, param, kind = error.get("code"), error.get("param"), error.get("type")

    def clean(text: str) -> str:
        for secret in provider.secrets:
            text = text.replace(secret, "***")
        return text

    fault = UpstreamRejected(
        clean(message_of(error)),
        status=status,
        code=clean(str(code)) if isinstance(code, (str, int)) else None,
        param=clean(param) if isinstance(param, str) else None,
        retry_after=wait,
    )
    if isinstance(kind, str):
        fault.metadata["upstream_type"] = clean(kind)
    return fault


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """Closes the connection at once, unless the answer is complete and the connection went back to the pool."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


async def _some(response: aiohttp.ClientResponse) -> bytes:
    """The next bytes, b"" at the end. What came before a connection broke is given first, which aiohttp would keep."""
    content = response.content
    left = content._read_nowait(-1) if content.exception() is not None else b""
    return left or await content.readany()


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, or its first `most` bytes and a little more."""
    body = bytearray()
    while len(body) <= most and (piece := await _some(response)):
        body += piece
    return bytes(body)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait, at most a day, or None."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            seconds = float(milliseconds) / 1000
        elif (value := headers.get("Retry-After")) is None:
            return None
        elif value.strip().replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def _error_of(body: bytes) -> dict[str, object]:
    """The error object of a provider's error body, whichever of the usual forms it has."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        return {"message": text[:500] or "The provider refused the request"}
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {"message": "The provider refused the request"}
    error = value.get("error", value)
    if isinstance(error, str):
        return {"message": error}
    if not isinstance(error, dict):
        return {"message": "The provider refused the request"}
    if "message" not in error and "detail" in error:
        detail = error["detail"]
        return {**error, "message": detail if isinstance(detail, str) else json.dumps(detail)[:500]}
    return error
