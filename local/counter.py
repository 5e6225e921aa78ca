"""The counter app, image `roost/counter`: `/` returns a count, `/click` adds one.

The count is in memory, where only a resume preserves it, or in the file named by `COUNTER_FILE`,
where a restart preserves it too if the file system is kept. Listens on 127.0.0.1:$PORT. It imports
little, to start fast.

`/state` is a state hook: GET returns the count, PUT restores it. `COUNTER_STATE_BYTES` adds that
many bytes of filler after the count, for tests with large states.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

BLOCK = 65_536
_PATTERN = bytes(range(256)) * (BLOCK // 256)


class Count:
    """The count, safe for several threads."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._value = int(path.read_text()) if path is not None and path.exists() else 0

    @property
    def value(self) -> int:
        """The number of clicks."""
        return self._value

    def click(self) -> int:
        """Add one and return the count, once it is in the file."""
        with self._lock:
            return self._set(self._value + 1)

    def set(self, value: int) -> None:
        """Set the count."""
        with self._lock:
            self._set(value)

    def _set(self, value: int) -> int:
        self._value = value
        if self._path is not None:
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.write_text(str(self._value))
            fresh.replace(self._path)
        return self._value


class State:
    """The count as bytes: digits, a newline, and filler whose content can be checked."""

    def __init__(self, count: Count, filler_bytes: int) -> None:
        self._count = count
        self._filler_bytes = filler_bytes

    def whole(self) -> tuple[int, Iterator[bytes]]:
        """The size of the state, and its bytes in parts."""
        head, size = f"{self._count.value}\n".encode(), self._filler_bytes
        return len(head) + size, _joined(head, size)

    def take(self, parts: Iterable[bytes]) -> None:
        """Restore a state, completely or not at all. Raises ValueError for an invalid one."""
        head, filler = b"", _Filler()
        for part in parts:
            if b"\n" in head:
                filler.check(part)
                continue
            head += part
            if b"\n" in head:
                filler.check(head.partition(b"\n")[2])
            elif len(head) > 20:
                raise ValueError("the state does not begin with a count")
        digits, line_end, _ = head.partition(b"\n")
        if not line_end or not digits.isdigit():
            raise ValueError("the state does not begin with a count")
        self._filler_bytes = filler.size
        self._count.set(int(digits))


class _Filler:
    """Checks filler that arrives in parts of any size."""

    def __init__(self) -> None:
        self.size = 0

    def check(self, part: bytes) -> None:
        """Check the next part. Raises ValueError where it differs."""
        while part:
            number, offset = divmod(self.size, BLOCK)
            expected = _block(number)[offset : offset + len(part)]
            if part[: len(expected)] != expected:
                raise ValueError(f"the state is not valid from byte {self.size} on")
            self.size += len(expected)
            part = part[len(expected) :]


def _block(number: int) -> bytes:
    """One block of the filler; all blocks differ."""
    return number.to_bytes(8, "big") + _PATTERN[8:]


def _joined(head: bytes, filler_bytes: int) -> Iterator[bytes]:
    yield head
    for start in range(0, filler_bytes, BLOCK):
        yield _block(start // BLOCK)[: filler_bytes - start]


class _Handler(BaseHTTPRequestHandler):
    count: Count
    state: State
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: with Nagle's algorithm the second would wait for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer `/`, `/click` and `/state`."""
        # Read the body, so that it is not taken for the next request.
        self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, str(self.count.value))
        elif path == "/click":
            self._answer(200, str(self.count.click()))
        elif path == "/state":
            self._send_state()
        else:
            self._answer(404, "not found")

    def do_POST(self) -> None:
        """The same as GET: a browser clicks with GET, other clients with POST."""
        self.do_GET()

    def do_PUT(self) -> None:
        """Restore the state from `/state`. An incomplete body changes nothing."""
        if self.path.partition("?")[0] != "/state":
            self.close_connection = True
            self._answer(404, "not found")
            return
        try:
            self.state.take(self._body())
        except ConnectionError:
            self.close_connection = True
        except ValueError as error:
            # The rest of the body is not read, so the connection cannot be reused.
            self.close_connection = True
            self._answer(400, str(error))
        else:
            self._answer(200, "restored")

    def _send_state(self) -> None:
        size, parts = self.state.whole()
        self._head(200, "application/octet-stream", size)
        for part in parts:
            self.wfile.write(part)

    def _body(self) -> Iterator[bytes]:
        """The request's body in parts. Raises ConnectionError when it ends early."""
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            yield from self._read(int(self.headers.get("content-length") or 0))
            return
        while size := self._chunk_size():
            yield from self._read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _chunk_size(self) -> int:
        line = self.rfile.readline()
        if not line:
            raise ConnectionError("the body is incomplete")
        return int(line.partition(b";")[0], 16)

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            part = self.rfile.read(min(size, BLOCK))
            if not part:
                raise ConnectionError("the body is incomplete")
            yield part
            size -= len(part)

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self._head(status, "text/plain; charset=utf-8", len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, size: int) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(size))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing for a request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer.server_bind resolves the host's name, which can take seconds.
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback for a client that disconnected."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    name = os.environ.get("COUNTER_FILE")
    _Handler.count = Count(Path(name) if name else None)
    _Handler.state = State(_Handler.count, int(os.environ.get("COUNTER_STATE_BYTES") or 0))
    # `os._exit`, because the interpreter's own shutdown can abort while a thread still writes.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    with _Server(("127.0.0.1", int(os.environ["PORT"])), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
