"""A preview that remembers: `/` shows a count, `/click` adds one. Imports little, to start fast.

The count is in memory, where only a resume keeps it, or in the file that `COUNTER_FILE` names,
where a restart keeps it too if the file system does. Listens on 127.0.0.1:$PORT.

`/state` is a state hook: GET hands the count out, PUT takes it back, wherever it is kept. With
`COUNTER_STATE_BYTES` so many bytes of filler follow the count, so that there are large states.
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
    """A number, safe for several threads."""

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
            return self._set(self._value + 1)

    def set(self, value: int) -> None:
        """Take the number for the count."""
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
    """The count as bytes: its digits, a line's end, and filler that tells whether it is whole."""

    def __init__(self, count: Count, filler_bytes: int) -> None:
        self._count = count
        self._filler_bytes = filler_bytes

    def whole(self) -> tuple[int, Iterator[bytes]]:
        """How many bytes the state has, and its bytes in parts."""
        head, size = f"{self._count.value}\n".encode(), self._filler_bytes
        return len(head) + size, _joined(head, size)

    def take(self, parts: Iterable[bytes]) -> None:
        """Take a state back, all of it or none. Raises ValueError where it is not one of ours."""
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
    """Filler that comes in parts of any size."""

    def __init__(self) -> None:
        self.size = 0

    def check(self, part: bytes) -> None:
        """Raise ValueError unless the part is what follows."""
        while part:
            number, offset = divmod(self.size, BLOCK)
            expected = _block(number)[offset : offset + len(part)]
            if part[: len(expected)] != expected:
                raise ValueError(f"the state is another one from its byte {self.size} on")
            self.size += len(expected)
            part = part[len(expected) :]


def _block(number: int) -> bytes:
    """A part of the filler that no other part is equal to."""
    return number.to_bytes(8, "big") + _PATTERN[8:]


def _joined(head: bytes, filler_bytes: int) -> Iterator[bytes]:
    yield head
    for start in range(0, filler_bytes, BLOCK):
        yield _block(start // BLOCK)[: filler_bytes - start]


class _Handler(BaseHTTPRequestHandler):
    count: Count
    state: State
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: with Nagle's algorithm the second would wait for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer `/`, `/click` and `/state`."""
        # A body that was sent must not be read as the next request.
        self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, str(self.count.value))
        elif path == "/click":
            self._answer(200, str(self.count.click()))
        elif path == "/state":
            self._hand_out()
        else:
            self._answer(404, "not found")

    def do_POST(self) -> None:
        """The same: a browser clicks with GET, a careful client with POST."""
        self.do_GET()

    def do_PUT(self) -> None:
        """Take the state back; a body that breaks off changes nothing."""
        if self.path.partition("?")[0] != "/state":
            self.close_connection = True
            self._answer(404, "not found")
            return
        try:
            self.state.take(self._body())
        except ConnectionError:
            self.close_connection = True
        except ValueError as error:
            # What is left of the body is not read.
            self.close_connection = True
            self._answer(400, str(error))
        else:
            self._answer(200, "taken")

    def _hand_out(self) -> None:
        size, parts = self.state.whole()
        self._head(200, "application/octet-stream", size)
        for part in parts:
            self.wfile.write(part)

    def _body(self) -> Iterator[bytes]:
        """The request's body in parts. Raises ConnectionError where it breaks off."""
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
            raise ConnectionError("the body broke off")
        return int(line.partition(b";")[0], 16)

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            part = self.rfile.read(min(size, BLOCK))
            if not part:
                raise ConnectionError("the body broke off")
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
        """Clicks are not worth a line."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer's own looks its name up in the DNS, which can take seconds.
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    name = os.environ.get("COUNTER_FILE")
    _Handler.count = Count(Path(name) if name else None)
    _Handler.state = State(_Handler.count, int(os.environ.get("COUNTER_STATE_BYTES") or 0))
    # At once: the interpreter's own end aborts where a thread that answers still writes.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    with _Server(("127.0.0.1", int(os.environ["PORT"])), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
