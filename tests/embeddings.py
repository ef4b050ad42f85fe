"""A real embedding provider on a loopback port: vectors that follow from the words, and texts that it refuses."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIMENSION = 16


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that are killed are what some tests are about."""


class EmbeddingServer:
    """Serves `POST /v1/embeddings` while it is open.

    Attributes:
        refuses: A request with one of these in a text is answered with 422.
        out: Every request is answered with 503.
    """

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.out = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
                texts = [texts] if isinstance(texts, str) else texts
                if outer.out:
                    self._answer(503, {})
                elif any(word in text for word in outer.refuses for text in texts):
                    self._answer(422, {"error": {"message": "this text cannot be embedded"}})
                else:
                    rows = [{"index": at, "embedding": _vector(text)} for at, text in enumerate(texts)]
                    self._answer(200, {"data": rows})

            def _answer(self, status: int, body: Any) -> None:
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def env(self) -> dict[str, str]:
        """The settings that make a server use it."""
        return {
            "MEMORYOS_EMBEDDING__PROVIDER": "http",
            "MEMORYOS_EMBEDDING__MODEL": "words",
            "MEMORYOS_EMBEDDING__BASE_URL": f"http://127.0.0.1:{self._server.server_port}/v1",
            "MEMORYOS_EMBEDDING__DIMENSION": str(DIMENSION),
        }

    def __enter__(self) -> EmbeddingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _vector(text: str) -> list[float]:
    vector = [0.01] * DIMENSION
    for word in text.lower().split():
        digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
        vector[digest[0] % DIMENSION] += 1.0 if digest[1] % 2 else -1.0
    return vector
