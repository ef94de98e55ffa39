"""A disk from a web server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from imagebuilder.download import CutError, Wanted, download

# Silence for so long is a broken connection; a large file may take hours as long as it goes on.
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Reply:
    response: httpx.Response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def pieces(self) -> Iterator[bytes]:
        try:
            yield from self.response.iter_raw(_PIECE)
        except httpx.TransportError as error:
            raise CutError(str(error) or type(error).__name__) from None


def fetch(url: str, wanted: Wanted) -> Iterator[bytes]:
    """The file at the URL, checked. Raises ImageError."""
    # As it is: a compressed transfer could not be resumed.
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}) as client:

        @contextmanager
        def open_at(offset: int) -> Iterator[_Reply]:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                request = client.build_request("GET", url, headers=headers)
                response = client.send(request, stream=True)
            except (httpx.TransportError, httpx.TooManyRedirects) as error:
                raise CutError(str(error) or type(error).__name__) from None
            try:
                yield _Reply(response)
            finally:
                response.close()

        yield from download(open_at, wanted)
