"""An HTTP server for emulators: a function from request to answer, over TLS or plain, a thread for each connection."""

from __future__ import annotations

import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Handler(BaseHTTPRequestHandler):
    """Connections stay open, as SDKs like them."""

    protocol_version = "HTTP/1.1"
    # Head and body go in two writes; without this the second waits for the first one's acknowledgement.
    disable_nagle_algorithm = True
    timeout = 120
    answer: ClassVar[Any]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client is gone
            self.close_connection = True

    def _handle(self) -> None:
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        status, answered, result = type(self).answer(self.command, self.path, headers, body)
        self.send_response(status)
        for key, value in answered.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(result)))
        self.end_headers()
        if status != 204 and self.command != "HEAD":
            self.wfile.write(result)

    def _chunks(self) -> bytes:
        """A body that comes in pieces (RFC 9112, 7.1)."""
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """A test that fails wants the tracebacks only."""


class Server(ThreadingHTTPServer):
    """On a port of loopback that is free. `answer` takes method, URL, headers in lower case and body."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, answer: Any, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), type("_Handler", (Handler,), {"answer": staticmethod(answer)}))
        self._tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a slow handshake is in nobody's way."""
        if self._tls is not None:
            request.settimeout(Handler.timeout)
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        super().finish_request(request, client_address)
        if self._tls is not None:
            request.close()
