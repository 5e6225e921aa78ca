"""An application with a state hook, for tests. Its environment controls its size and its failures.

`GET /` returns the state's SHA-256, `GET /state` the state; `PUT /state` replaces it. `GET /busy`
answers 204, and 200 after a `GET /come`. After `GET /hang` no request is answered. The first state
is `STATE_BYTES` incompressible bytes, generated from `STATE_SEED`. `SLOW_MS` is the delay before
each 64 KiB of `GET /state`, in ms; the first `HELD` of them stop half-way until a `GET /go`. The
first `REFUSE` PUTs are answered with 503.
"""

import hashlib
import os
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

BLOCK = 65_536


class _Handler(BaseHTTPRequestHandler):
    state: ClassVar[bytearray] = bytearray()
    refuse: ClassVar[int] = int(os.environ.get("REFUSE") or 0)
    slow: ClassVar[float] = int(os.environ.get("SLOW_MS") or 0) / 1000
    held: ClassVar[int] = int(os.environ.get("HELD") or 0)
    go: ClassVar[threading.Event] = threading.Event()
    busy: ClassVar[bool] = False
    hangs: ClassVar[bool] = False
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer every path of the module's description but PUT; other paths return the state."""
        if self.hangs:
            time.sleep(3600)
        if self.path == "/hang":
            _Handler.hangs = True
            self._answer(200, b"from now on")
            return
        if self.path == "/":
            self._answer(200, hashlib.sha256(self.state).hexdigest().encode())
            return
        if self.path in ("/come", "/busy"):
            _Handler.busy |= self.path == "/come"
            self._answer(200 if self.busy else 204, b"")
            return
        if self.path == "/go":
            self.go.set()
            self._answer(200, b"on")
            return
        state = bytes(self.state)
        stops = _Handler.held > 0
        _Handler.held -= stops
        self.send_response(200)
        self.send_header("content-length", str(len(state)))
        self.end_headers()
        for start in range(0, len(state), BLOCK):
            time.sleep(self.slow)
            if stops and start >= len(state) // 2:
                self.go.wait()
            self.wfile.write(state[start : start + BLOCK])

    def do_PUT(self) -> None:
        """Replace the state by a chunked body, after its last chunk."""
        taken = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            taken += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if _Handler.refuse:
            _Handler.refuse -= 1
            self._answer(503, b"not now")
            return
        self.state[:] = taken
        self._answer(200, b"taken")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log no traceback when a client disconnects."""


if __name__ == "__main__":
    dice = random.Random(os.environ.get("STATE_SEED", ""))
    left = int(os.environ.get("STATE_BYTES") or 0)
    while left:
        _Handler.state += dice.randbytes(min(left, 1 << 20))
        left = int(os.environ["STATE_BYTES"]) - len(_Handler.state)
    _Server(("127.0.0.1", int(os.environ["PORT"])), _Handler).serve_forever()
