"""A web server on loopback that serves a folder, and fails as it is told."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FaultyServer(ThreadingHTTPServer):
    """Serves `folder`; `faults[file name]` is a list of what its next GETs do, one each.

    A fault is a status (500, 404 ...), "short" (half the body, then the line breaks), "wrong"
    (other bytes of the same length), "stall" (half the body, then nothing more), or "lengthless"
    (the right body without a Content-Length). `heads[file name]`: statuses of its next HEADs.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[int | str]] = {}
        self.heads: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.gets: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        statuses = self.server.heads.get(Path(unquote(urlsplit(self.path).path)).name, [])
        self._answer(statuses.pop(0) if statuses else None)

    def do_GET(self) -> None:
        name = Path(unquote(urlsplit(self.path).path)).name
        self.server.gets[name] += 1
        if name in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[name])
            self.end_headers()
            return
        faults = self.server.faults.get(name, [])
        self._answer(faults.pop(0) if faults else None)

    def _answer(self, fault: int | str | None) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        body = path.read_bytes()
        self.send_response(200)
        if not self._lengthless(path.name, fault):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
        half = fault in ("short", "stall")
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()
        if fault == "stall":
            time.sleep(60)

    def _lengthless(self, name: str, fault: int | str | None) -> bool:
        return "lengthless" in (fault, *self.server.faults.get(name, [])[:1])


@contextmanager
def serve(folder: Path) -> Iterator[FaultyServer]:
    """A running server; it ends with the block."""
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
