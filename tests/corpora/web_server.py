"""A small web server on loopback for tests: files with ranges, and every way in which a server can fail."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class WebServer:
    """Attributes: `address`, `requests` (method and path, in order), and `faults`: path -> what goes wrong there."""

    root: Path
    address: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def fault_at(self, path: str, *, is_head: bool) -> str:
        """Returns the fault of this request: the list is used up one by one, a last entry with `!` stays."""
        waiting = self.faults.get(path, [])
        if not waiting or (is_head and not waiting[0].startswith("status") and not waiting[0].startswith("to ")):
            return ""
        return waiting[0].rstrip("!") if waiting[0].endswith("!") else waiting.pop(0)


@contextmanager
def web_server(root: Path, headers: Mapping[str, str] | None = None) -> Iterator[WebServer]:
    """Yields a server of the files below `root`; `headers` come with each of them."""
    about = WebServer(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(is_head=True)

        def do_GET(self) -> None:
            self._answer(is_head=False)

        def _answer(self, *, is_head: bool) -> None:
            about.requests.append((self.command, self.path))
            fault = about.fault_at(self.path, is_head=is_head)
            path = about.root / self.path.partition("?")[0].lstrip("/")
            if fault.startswith("status"):
                return self._head(int(fault.split()[1]), 0)
            if fault.startswith("to "):
                return self._head(302, 0, Location=fault.removeprefix("to "))
            if not path.is_file():
                return self._head(404, 0)
            data = path.read_bytes()
            first, last = 0, len(data) - 1
            wanted = self.headers.get("Range", "")
            if wanted and fault != "no ranges":
                low, _, high = wanted.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high or last), last)
            body = data[first : last + 1]
            more = {"ETag": f'"{hash(data)}"', **(headers or {})}
            if wanted and fault != "no ranges":
                more["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._head(206 if "Content-Range" in more else 200, len(body), **more)
            if is_head:
                return None
            if fault == "reset":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return self.connection.close()
            self.wfile.write(body)
            return None

        def _head(self, status: int, num_bytes: int, **more: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(num_bytes))
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    about.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield about
    finally:
        server.shutdown()
        server.server_close()
