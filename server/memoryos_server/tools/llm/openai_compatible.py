"""One provider that speaks OpenAI's dialect over HTTP.

Bytes go out and come back as they are. The caller's own authorization never gets here; only the provider's key goes out.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from memoryos import tracing
from memoryos.tracing import NO_SPANS, Span, Spans, Value
from memoryos_server.domain.chat.sse import SseSplitter, message_of
from memoryos_server.domain.core.faults import DeadlineExceeded, Fault, Upstream, UpstreamRejected
from memoryos_server.domain.ports import ProviderAnswer

RETRIES = 2
BACKOFF_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 8.0
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
MODELS_SECONDS = 60.0
MODELS_FAILED_SECONDS = 15.0
MODELS_TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

_REJECTED = frozenset({400, 404, 413, 422, 429})
_NO_STREAM = frozenset({"application/json", "text/html"})
_CUT = (aiohttp.ClientError, ConnectionError, OSError)


class UpstreamOptions(Protocol):
    """Where the provider is and how long it may take; the settings of the upstream have this form."""

    @property
    def base_url(self) -> str:
        """Such as `https://api.openai.com/v1`."""

    @property
    def api_key(self) -> str:
        """The provider's key, or "" for none."""

    @property
    def connect_timeout_seconds(self) -> float:
        """How long a connection may take."""

    @property
    def first_byte_timeout_seconds(self) -> float:
        """How long the first byte of an answer may take."""

    @property
    def idle_timeout_seconds(self) -> float:
        """How long a stream may bring no data event, or a JSON answer no byte."""


@dataclass(frozen=True, slots=True)
class _Retry:
    """An attempt failed before its first byte, in a way that another may not."""

    fault: Fault
    wait: float | None = None


class OpenAiCompatible:
    """A provider, as the port `Llm` has it. Open it with `async with`.

    Args:
        options: Where it is and how long it may take.
        trust_env: Whether `HTTP_PROXY` and its like are obeyed.
        answered: Told how each attempt began (`ok`, `rejected`, `failed`, `timeout`), and after how many seconds.
        spans: Makes a span of each attempt.
    """

    def __init__(
        self,
        options: UpstreamOptions,
        *,
        trust_env: bool = False,
        answered: Callable[[str, float], None] = lambda outcome, seconds: None,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._options = options
        self._answered = answered
        self._spans = spans
        self._base = options.base_url.rstrip("/")
        self._about = _about(self._base) if spans.on else {}
        self._trust_env = trust_env
        self._session: aiohttp.ClientSession | None = None
        self._models: tuple[float, list[Mapping[str, object]] | Upstream] | None = None
        self._models_lock = asyncio.Lock()

    async def __aenter__(self) -> OpenAiCompatible:
        # Compression is not asked for: a provider's bytes are the client's bytes.
        headers = {"Accept-Encoding": "identity", "User-Agent": "memoryos"}
        if self._options.api_key:
            headers["Authorization"] = f"Bearer {self._options.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._options.connect_timeout_seconds),
            trust_env=self._trust_env,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, body: bytes) -> ProviderAnswer:
        """The answer to a chat completion request.

        Raises:
            UpstreamRejected: The provider refused the request.
            Upstream: The provider failed, or refused our key.
            DeadlineExceeded: The provider took too long.
        """
        response, first = await self._open(body, stream=False)
        try:
            pieces, size = [first], len(first)
            while True:
                async with asyncio.timeout(self._options.idle_timeout_seconds):
                    piece = await _some(response)
                if not piece:
                    break
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise Upstream("The provider's answer is too large")
            return ProviderAnswer(b"".join(pieces), response.headers.get("Content-Type", "application/json"))
        except TimeoutError:
            raise DeadlineExceeded("The provider fell silent amid its answer") from None
        except _CUT:
            raise Upstream("The provider's answer broke off") from None
        finally:
            _hang_up(response)

    async def stream(self, body: bytes) -> AsyncIterator[bytes]:
        """The raw bytes of a streamed answer as they come. Closing the iterator closes the connection.

        Raises:
            UpstreamRejected: The provider refused the request.
            Upstream: The provider failed, refused our key, or broke off.
            DeadlineExceeded: The provider took too long to begin, or sent no data for too long.
        """
        response, first = await self._open(body, stream=True)
        try:
            clock = asyncio.get_running_loop().time
            events = SseSplitter()
            # Only the time spent waiting for the provider counts, and only data ends it: a comment says that a proxy
            # lives, not that an answer is coming.
            waited = 0.0
            events.feed(first)
            yield first
            while True:
                since = clock()
                async with asyncio.timeout(self._options.idle_timeout_seconds - waited):
                    piece = await _some(response)
                if not piece:
                    return
                waited = 0.0 if events.feed(piece) or events.overflowed else waited + clock() - since
                yield piece
        except TimeoutError:
            raise DeadlineExceeded("The provider fell silent amid its answer") from None
        except _CUT:
            raise Upstream("The provider's answer broke off") from None
        finally:
            _hang_up(response)

    async def models(self) -> list[Mapping[str, object]]:
        """The provider's models, at most a minute old; empty if it has no list.

        Raises:
            Upstream: The list could not be had; that is remembered for some seconds.
        """
        if self._models is None or (self._clock() >= self._models[0] and not self._models_lock.locked()):
            async with self._models_lock:
                if self._models is None or self._clock() >= self._models[0]:
                    self._models = await self._refreshed()
        known = self._models[1]
        if isinstance(known, Upstream):
            raise Upstream(known.message)
        return known

    async def _refreshed(self) -> tuple[float, list[Mapping[str, object]] | Upstream]:
        """The list anew with its expiry; where it cannot be had, the old list or the failure."""
        try:
            return self._clock() + MODELS_SECONDS, await self._list()
        except Upstream as fault:
            old = self._models[1] if self._models else fault
            return self._clock() + MODELS_FAILED_SECONDS, fault if isinstance(old, Upstream) else old

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    async def _list(self) -> list[Mapping[str, object]]:
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self._http.get(f"{self._base}/models", allow_redirects=False) as response,
            ):
                if response.status in (404, 405, 501):
                    return []
                if response.status != 200:
                    raise Upstream(f"The provider's list of models answers {response.status}")
                value = json.loads(await _read(response, MAX_ANSWER_BYTES))
        except (TimeoutError, ValueError, RecursionError, *_CUT):
            raise Upstream("The provider's list of models cannot be read") from None
        data = value.get("data") if isinstance(value, dict) else value
        if not isinstance(data, list):
            return []
        return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the provider is not open")
        return self._session

    async def _open(self, body: bytes, *, stream: bool) -> tuple[aiohttp.ClientResponse, bytes]:
        """A response that has begun to answer, and its first bytes."""
        fault: Fault = Upstream("The provider cannot be reached")
        for attempt in range(RETRIES + 1):
            resend = {"http.request.resend_count": attempt} if attempt else {}
            with self._spans.client("POST /chat/completions", {**self._about, **resend}) as span:
                result = await self._measured(body, span, stream=stream)
            if not isinstance(result, _Retry):
                return result
            fault = result.fault
            if attempt == RETRIES or (result.wait is not None and result.wait > LONGEST_WAIT_SECONDS):
                break
            jitter = random.uniform(0, min(LONGEST_WAIT_SECONDS, BACKOFF_SECONDS * 2**attempt))  # noqa: S311  # no secret
            await asyncio.sleep(jitter if result.wait is None else result.wait)
        raise fault

    async def _measured(
        self, body: bytes, span: Span, *, stream: bool
    ) -> tuple[aiohttp.ClientResponse, bytes] | _Retry:
        """One attempt, and how it went."""
        began = self._clock()
        outcome = "failed"
        try:
            result = await self._attempt(body, stream=stream)
            if isinstance(result, _Retry):
                outcome = _failed(span, result.fault)
            else:
                outcome = "ok"
                span.note({"http.response.status_code": result[0].status})
            return result
        except Fault as fault:
            outcome = _failed(span, fault)
            raise
        except asyncio.CancelledError:
            outcome = ""  # the client left: that says nothing of the provider
            raise
        finally:
            if outcome:
                self._answered(outcome, self._clock() - began)

    async def _attempt(self, body: bytes, *, stream: bool) -> tuple[aiohttp.ClientResponse, bytes] | _Retry:
        response: aiohttp.ClientResponse | None = None
        begun = False
        try:
            async with asyncio.timeout(self._options.first_byte_timeout_seconds):
                response = await self._http.post(
                    f"{self._base}/chat/completions",
                    data=io.BytesIO(body),
                    headers={
                        "Content-Type": "application/json",
                        "Accept": "text/event-stream" if stream else "application/json",
                        **tracing.outgoing(),
                    },
                    allow_redirects=False,
                )
                if response.status != 200:
                    return await self._refusal(response)
                if stream and response.content_type in _NO_STREAM:
                    raise Upstream("The provider does not stream")
                first = await _some(response)
                if not first:
                    return _Retry(Upstream("The provider's answer is empty"))
                begun = True
                return response, first
        except (TimeoutError, aiohttp.ServerTimeoutError):
            return _Retry(DeadlineExceeded("The provider did not answer in time"))
        except aiohttp.InvalidURL:
            raise Upstream("The provider's address is malformed") from None
        except _CUT:
            return _Retry(Upstream("The provider cannot be reached"))
        finally:
            if response is not None and not begun:
                _hang_up(response)

    async def _refusal(self, response: aiohttp.ClientResponse) -> _Retry:
        """What an error status means.

        Raises:
            UpstreamRejected: The provider refused the request.
            Upstream: The provider failed in a way that another attempt will not mend.
        """
        status = response.status
        wait = _retry_after(response.headers)
        if status in _REJECTED:
            rejected, code = await self._rejected(response, wait)
            if status == 429 and code != "insufficient_quota":
                return _Retry(rejected, wait)
            raise rejected
        if status == 408:
            return _Retry(DeadlineExceeded("The provider ran out of time"), wait)
        if status in (401, 403):
            raise Upstream("The provider refused the key that it is asked with", metadata=_status(status))
        fault = Upstream(f"The provider failed with status {status}", retry_after=wait, metadata=_status(status))
        if status >= 500:
            return _Retry(fault, wait)
        raise fault

    async def _rejected(
        self, response: aiohttp.ClientResponse, wait: float | None
    ) -> tuple[UpstreamRejected, str | None]:
        error = _error_of(await _read(response, MAX_ERROR_BYTES))
        code = error.get("code")
        code = str(code) if isinstance(code, (str, int)) else None
        param = error.get("param")
        fault = UpstreamRejected(
            self._redacted(message_of(error)),
            status=response.status,
            code=code,
            param=param if isinstance(param, str) else None,
            retry_after=wait,
        )
        if isinstance(kind := error.get("type"), str):
            fault.metadata["upstream_type"] = kind
        return fault, code

    def _redacted(self, text: str) -> str:
        key = self._options.api_key
        return text.replace(key, "***") if key else text


def _about(base: str) -> dict[str, Value]:
    """What spans say of a provider: never the path, which may hold a key."""
    url = urlsplit(base)
    about: dict[str, Value] = {"http.request.method": "POST", "url.template": "/chat/completions"}
    if url.hostname:
        about |= {"server.address": url.hostname, "server.port": url.port or (443 if url.scheme == "https" else 80)}
    return about


def _failed(span: Span, fault: Fault) -> str:
    """Tells a span of a failure; its outcome."""
    outcome = _outcome(fault)
    if (status := fault.metadata.get("upstream_status", "")).isdigit():
        span.note({"http.response.status_code": int(status)})
    span.fail(outcome)
    return outcome


def _outcome(fault: Fault) -> str:
    return (
        "rejected"
        if isinstance(fault, UpstreamRejected)
        else "timeout"
        if isinstance(fault, DeadlineExceeded)
        else "failed"
    )


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


def _status(status: int) -> dict[str, str]:
    return {"upstream_status": str(status)}


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
