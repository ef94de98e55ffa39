"""What a cloud's error codes mean: the rows of its table, and the contract's error that comes of a row. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from providers.base import OfferingRefusedError, ProviderError, QuotaError, Scope, ThrottledError

# Some clouds explain a refusal in kilobytes.
LONGEST_QUOTE = 500
# Karpenter's time for EC2: capacity changes within minutes, and asking costs one of few launches a second.
CAPACITY_SECONDS = 180.0
# A quota has room again when somebody raises it, or an instance ends (if it was ours, the service asks again at once).
QUOTA_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row: what a code means. The sentence may name any value of the call (see `About`)."""

    error: type[ProviderError]
    sentence: str
    reason: str = ""  # made of the code itself unless given
    scope: Scope = Scope.OFFERING


class About(dict[str, str]):
    """The values a sentence may name; those that the call has not are shown as "(not set)"."""

    def __missing__(self, key: str) -> str:
        return "(not set)"


def refused(meaning: Meaning, reason: str, sentence: str) -> OfferingRefusedError | None:
    """Of a row that rules out an offering; None of any other."""
    if not issubclass(meaning.error, OfferingRefusedError):
        return None
    seconds = QUOTA_SECONDS if meaning.error is QuotaError else CAPACITY_SECONDS
    return meaning.error(reason, sentence, meaning.scope, seconds)


def error_of(meaning: Meaning, reason: str, sentence: str, retry_after: float | None) -> ProviderError:
    """Of any row; `retry_after` is the server's own word in seconds, if it gave one."""
    if meaning.error is ThrottledError:
        return ThrottledError(reason, sentence, retry_after)
    return refused(meaning, reason, sentence) or meaning.error(reason, sentence)
