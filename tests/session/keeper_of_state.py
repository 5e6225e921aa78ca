"""An application for tests: it hands its state out and takes one back, as told by its environment.

`GET /` shows the state's SHA-256; `GET /state` hands it out; `PUT /state` takes one; `GET /busy`
says whether anybody is there, who says so by `GET /come`; after `GET /hang` nothing is answered any
more. At first the state is
`STATE_BYTES` bytes that no compression makes smaller, made of `STATE_SEED`. `SLOW_MS` is how long
it waits before each 64 KiB that it hands out, `REFUSE` how many PUTs it answers with 503 first.
"""

import hashlib
import os
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

BLOCK = 65_536


class _Handler(BaseHTTPRequestHandler):
    state: ClassVar[bytearray] = bytearray()
    refuse: ClassVar[int] = int(os.environ.get("REFUSE") or 0)
    slow: ClassVar[float] = int(os.environ.get("SLOW_MS") or 0) / 1000
    busy: ClassVar[bool] = False
    hangs: ClassVar[bool] = False
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Show the state's hash, or hand it out."""
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
        state = bytes(self.state)
        self.send_response(200)
        self.send_header("content-length", str(len(state)))
        self.end_headers()
        for start in range(0, len(state), BLOCK):
            time.sleep(self.slow)
            self.wfile.write(state[start : start + BLOCK])

    def do_PUT(self) -> None:
        """Take a state, once its body has ended well."""
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
        """Not worth a line."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not worth a traceback."""


if __name__ == "__main__":
    dice = random.Random(os.environ.get("STATE_SEED", ""))
    left = int(os.environ.get("STATE_BYTES") or 0)
    while left:
        _Handler.state += dice.randbytes(min(left, 1 << 20))
        left = int(os.environ["STATE_BYTES"]) - len(_Handler.state)
    _Server(("127.0.0.1", int(os.environ["PORT"])), _Handler).serve_forever()
