"""A preview that remembers: `/` shows a count, `/click` adds one. Imports little, to start fast.

The count is in memory, where only a resume keeps it, or in the file that `COUNTER_FILE` names,
where a restart keeps it too if the file system does. Listens on 127.0.0.1:$PORT.
"""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer


class Count:
    """A number that only grows, safe for several threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._value = int(path.read_text()) if path is not None and path.exists() else 0

    @property
    def value(self) -> int:
        """How many clicks there were."""
        return self._value

    def click(self) -> int:
        """Add one and return the sum; in the file before it is returned."""
        with self._lock:
            self._value += 1
            if self._path is not None:
                fresh = self._path.with_name(self._path.name + ".new")
                fresh.write_text(str(self._value))
                fresh.replace(self._path)
            return self._value


class _Handler(BaseHTTPRequestHandler):
    count: Count
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: with Nagle's algorithm the second would wait for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer `/` and `/click`."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, str(self.count.value))
        elif path == "/click":
            self._answer(200, str(self.count.click()))
        else:
            self._answer(404, "not found")

    def do_POST(self) -> None:
        """The same: a browser clicks with GET, a careful client with POST."""
        self.do_GET()

    def _answer(self, status: int, text: str) -> None:
        # A body that was sent must not be read as the next request.
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Clicks are not worth a line."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer's own looks its name up in the DNS, which can take seconds.
        TCPServer.server_bind(self)


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    name = os.environ.get("COUNTER_FILE")
    _Handler.count = Count(Path(name) if name else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    with _Server(("127.0.0.1", int(os.environ["PORT"])), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
