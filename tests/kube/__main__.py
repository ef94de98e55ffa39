"""The API server's stand-in as a process: `python -m tests.kube`. Ends when its standard input does.

One port, HTTP or HTTPS, with a bearer token; `/_control/` is for tests. What it does not do is written at the top of
`objects`, `server`, `patches` and `schemas`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import ssl
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.clouds.process import end_with_parent
from tests.kube.server import Answer, ApiServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        data = self.rfile.read(size) if size else b""
        headers = {key.lower(): value for key, value in self.headers.items()}
        answer = self.server.api.answer(self.command, self.path, headers, data)
        if answer is None:
            self._reset()
            return
        try:
            if answer.watch is None:
                self._whole(answer)
            else:
                self._stream(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _whole(self, answer: Answer) -> None:
        data = json.dumps(answer.body).encode()
        self.send_response(answer.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, answer: Answer) -> None:
        watch = answer.watch
        assert watch is not None
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in self.server.api.events(watch, self._hung_up):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            if watch.ended == "reset":
                self._reset()
            else:
                self.wfile.write(b"0\r\n\r\n")
        finally:
            with self.server.api.lock:
                self.server.api.watches.close(watch)

    def _hung_up(self) -> bool:
        """Whether the client has gone; it sends nothing while it watches."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def _reset(self) -> None:
        # With this the close is a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api
        self._tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread, so that a client that does not shake hands holds up nobody else.
        super().finish_request(
            self._tls.wrap_socket(request, server_side=True) if self._tls else request, client_address
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away in the middle of something


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--certificate", help="PEM file with certificate and key: HTTPS")
    args = parser.parse_args()
    tls = None
    if args.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(args.certificate)
    server = _Server(ApiServer(), tls)
    end_with_parent()
    os.write(args.ready_fd, f"{server.server_address[1]}\n".encode())
    os.close(args.ready_fd)
    server.serve_forever()


if __name__ == "__main__":
    main()
