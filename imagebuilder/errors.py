"""What can go wrong with an image, told apart by whether it is worth trying again."""

from __future__ import annotations

from typing import ClassVar


class ImageError(Exception):
    """There is no image. `reason` is one stable word for programs, str() the sentence for people: why, and what to do.

    Permanent: the same again has the same end, until somebody changes something.
    """

    permanent: ClassVar[bool] = True

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class PassingImageError(ImageError):
    """The same again may well succeed: a server that is down, a connection that broke, a disk that is full now."""

    permanent = False


def no_space(sentence: str) -> PassingImageError:
    """The disk is full, or would be."""
    return PassingImageError("NoSpace", sentence)
