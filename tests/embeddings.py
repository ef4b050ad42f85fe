"""A real embedding provider on a loopback port: vectors that follow from the words, refusals, answers that are wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIMENSION = 16
POISON = "unembeddable"
"""A word that the fixtures of journeys have it refuse."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that are killed are what some tests are about."""


class EmbeddingServer:
    """Serves `POST /v1/embeddings` in OpenAI's dialect while it is open.

    Attributes:
        dimension: Of its vectors.
        refuses: A request with one of these in a text is answered with 422.
        out: Every request is answered with 503.
        answers: Cleared, every request waits until it is set.
        most: After so many texts it is out, too.
        status: What it answers with else.
        body: What it answers instead of vectors, or None.
        asked: The texts of the requests.
        keys: The Authorization headers of the requests.
    """

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension
        self.refuses: set[str] = set()
        self.out = False
        self.answers = threading.Event()
        self.answers.set()
        self.most = 10**9
        self.status = 200
        self.body: bytes | None = None
        self.asked: list[list[str]] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
                texts = [texts] if isinstance(texts, str) else texts
                outer.asked.append(texts)
                outer.answers.wait(60)
                outer.keys.append(self.headers["Authorization"])
                outer.most -= len(texts)
                if any(word in text for word in outer.refuses for text in texts):
                    self._answer(422, b'{"error": {"message": "this text cannot be embedded"}}')
                elif outer.out or outer.most < 0:
                    self._answer(503, b"{}")
                elif outer.body is not None:
                    self._answer(outer.status, outer.body)
                else:
                    # Out of order, as the dialect allows: the index counts.
                    rows = [{"index": at, "embedding": vector(text, outer.dimension)} for at, text in enumerate(texts)]
                    self._answer(outer.status, json.dumps({"data": rows[::-1]}).encode())

            def _answer(self, status: int, raw: bytes) -> None:
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
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def env(self) -> dict[str, str]:
        """The settings that make a server use it."""
        return {
            "MEMORYOS_EMBEDDING__PROVIDER": "http",
            "MEMORYOS_EMBEDDING__MODEL": "words",
            "MEMORYOS_EMBEDDING__BASE_URL": self.url,
            "MEMORYOS_EMBEDDING__DIMENSION": str(self.dimension),
        }

    def __enter__(self) -> EmbeddingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def vector(text: str, dimension: int = DIMENSION) -> list[float]:
    """The vector of a text, not of length 1: texts with words in common are near each other."""
    made = [0.01] * dimension
    for word in text.lower().split():
        digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
        made[digest[0] % dimension] += 1.0 if digest[1] % 2 else -1.0
    return made
