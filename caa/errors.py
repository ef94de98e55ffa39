"""What a use case may answer instead of success. Front doors turn these into ttrpc statuses and problem+json."""

from __future__ import annotations


class CallError(Exception):
    """A refusal a caller can act on. `reason` is a stable CamelCase word; str() is a sentence for people."""

    reason = "Internal"

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        if reason:
            self.reason = reason


class InvalidInputError(CallError):
    """The call itself is wrong; repeating it cannot help. `field` names the part to change."""

    reason = "InvalidInput"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(CallError):
    """No such sandbox."""

    reason = "SandboxNotFound"


class ConflictError(CallError):
    """The sandbox is in a state in which this cannot be done."""

    reason = "WrongState"


class StartFailedError(CallError):
    """The pod VM could not be had; everything it brought is being removed. Carries the cloud's reason word."""

    reason = "StartFailed"


class DeadlineError(CallError):
    """The caller's time is up. What was begun is being removed."""

    reason = "DeadlineExceeded"


class UnavailableError(CallError):
    """The service cannot take calls now (starting, stopping, ledger out of reach); the same call may work later."""

    reason = "Unavailable"
