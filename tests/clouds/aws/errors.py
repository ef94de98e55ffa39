"""Errors as EC2's query protocol sends them."""

from __future__ import annotations

from xml.sax.saxutils import escape

from werkzeug.exceptions import HTTPException

# Codes that EC2 answers with a status other than 400: capacity and its own failures are the server's fault.
_STATUS = {
    "InsufficientInstanceCapacity": 500,
    "InternalError": 500,
    "RequestLimitExceeded": 503,
    "Unavailable": 503,
}


class Ec2Error(HTTPException):
    """An EC2 error; moto sends `description` with status `code` as it is."""

    def __init__(self, error: str, message: str) -> None:
        self.error, self.message = error, message
        self.code = _STATUS.get(error, 400)
        super().__init__(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Response><Errors><Error><Code>{escape(error)}</Code><Message>{escape(message)}</Message></Error></Errors>"
            "<RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
        )

    @property
    def body(self) -> bytes:
        """The whole answer."""
        return (self.description or "").encode()
