"""A worker node's instance metadata service (IMDSv2), real HTTP on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAC = "0e:00:00:00:00:01"
VALUES = {
    "placement/region": "eu-west-1",
    "mac": MAC,
    f"network/interfaces/macs/{MAC}/subnet-id": "subnet-9",
    f"network/interfaces/macs/{MAC}/security-group-ids": "sg-8\nsg-9",
    "public-keys/": "0=ops\n1=other",
}


class Metadata(ThreadingHTTPServer):
    """IMDSv2: a token by PUT, values by GET with it."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Metadata
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        asked = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        self.answer(200 if self.path == "/latest/api/token" and asked.isdigit() else 400, "session")

    def do_GET(self) -> None:
        path = self.path.removeprefix("/latest/meta-data/")
        self.server.asked.append(path)
        if self.headers.get("X-aws-ec2-metadata-token") != "session":
            self.answer(401, "")
        elif path in self.server.values:
            self.answer(200, self.server.values[path])
        else:
            self.answer(404, "not found")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_metadata(values: dict[str, str] = VALUES) -> Iterator[Metadata]:
    """The service with a copy of the values, which may be changed while it runs."""
    with Metadata(dict(values)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
