"""Serves the page, the web runtimes and one artifact on loopback."""

from __future__ import annotations

import http
import http.server
import threading
import urllib.parse
from pathlib import Path

from ..runtimes.managed import Managed

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}


class PageServer(Managed):
    """A web server for one browser; a context manager.

    Args:
        pages: Folder of the page.
        packages: Folder of the web runtimes.

    Attributes:
        artifact: The file served as `/artifact`; set before a page is opened.
        url: Address of the page, set on entering.
    """

    def __init__(self, pages: Path, packages: Path) -> None:
        self.artifact: Path | None = None
        self.url = ""
        self._roots = {"packages": packages, "": pages}
        self._server: http.server.ThreadingHTTPServer | None = None

    def _open(self) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _find(self, path: str) -> Path | None:
        """Return the requested file; never one outside the two folders."""
        if path == "/artifact":
            return self.artifact
        first, _, rest = path.lstrip("/").partition("/")
        root, name = (self._roots[first], rest) if first == "packages" else (self._roots[""], first)
        if rest and first != "packages":
            return None
        file = (root / (name or "index.html")).resolve()
        return file if file.is_relative_to(root.resolve()) and file.is_file() else None

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        # A page of a stranger can reach this server by a name that it resolves to 127.0.0.1 (DNS
        # rebinding); the browser then sends that name.
        if request.headers.get("Host") != urllib.parse.urlsplit(self.url).netloc:
            request.send_error(http.HTTPStatus.MISDIRECTED_REQUEST)
            return
        file = self._find(request.path.partition("?")[0])
        body = b"" if file is None else file.read_bytes()
        request.send_response(404 if file is None else 200)
        kind = "" if file is None else _TYPES.get(file.suffix, "application/octet-stream")
        request.send_header("Content-Type", kind or "text/plain")
        request.send_header("Content-Length", str(len(body)))
        # Threads need shared memory, which only a cross-origin isolated page has.
        request.send_header("Cross-Origin-Opener-Policy", "same-origin")
        request.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        request.wfile.write(body)
