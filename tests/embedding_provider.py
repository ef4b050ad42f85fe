"""An embedding provider on loopback that speaks OpenAI's dialect; its vectors have three dimensions."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Provider:
    """What it does and what it was asked.

    Attributes:
        url: Its base URL.
        status: What it answers with.
        body: The answer's body, or None for vectors.
        most: After so many texts it is out of breath.
        refuses: A text with this in it is answered with 400.
        asked: The bodies of requests.
        keys: The Authorization headers of requests.
    """

    url: str = ""
    status: int = 200
    body: bytes | None = None
    most: int = 10**9
    refuses: str = "\x00"
    asked: list[dict[str, object]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def vector(text: str) -> list[float]:
    """The vector of a text: its length and 4, and a little of its own so that no two are equal."""
    return [float(len(text)), 4.0, hashlib.md5(text.encode(), usedforsecurity=False).digest()[0] / 2550]


@contextmanager
def embedding_provider() -> Iterator[Provider]:
    """A provider that listens while the context lasts."""
    state = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(request)
            state.keys.append(self.headers["Authorization"])
            state.most -= len(request["input"])
            refused = any(state.refuses in text for text in request["input"])
            # Out of order, as the dialect allows: the index counts.
            rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(request["input"])][::-1]
            body = state.body if state.body is not None else json.dumps({"data": rows}).encode()
            self.send_response(400 if refused else 503 if state.most < 0 else state.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
