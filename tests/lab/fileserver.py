"""A web server for one file, with the faults that real ones have."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.lab.webserver import WebServer


@dataclass
class FileServer(WebServer):
    """Serves `content` at any path. A context; `url` is its address.

    `cuts`: after how many bytes the first replies break off. `ranges`: whether it can begin in the middle. `sized`:
    whether it tells the size. `statuses`: what the first requests are answered with. `claimed`: the size it tells, if
    not the true one.
    """

    content: bytes
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    sized: bool = True
    claimed: int = 0
    redirect_to: str = ""
    asked: list[str] = field(default_factory=list)
    """The Range of each request, "" without."""

    @property
    def url(self) -> str:
        """Of the file."""
        return f"{self.address}/images/podvm.raw"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """As the fields say."""
        asked = request.headers.get("Range", "")
        self.asked.append(asked)
        if self.redirect_to:
            request.send_response(302)
            request.send_header("Location", self.redirect_to)
            request.end_headers()
            return
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(match[1]) if match and self.ranges else 0
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.sized:
            request.send_header("Content-Length", str(self.claimed or len(body)))
        request.end_headers()
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        with contextlib.suppress(OSError):  # the client may have enough
            request.wfile.write(body)
        request.close_connection = True
