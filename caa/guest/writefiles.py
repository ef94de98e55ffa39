"""What user data asks for, whichever reader reads it."""

from __future__ import annotations

from typing import NamedTuple


class UserDataError(Exception):
    """The user data is not what a pod VM accepts. Names the place, never the content."""


class File(NamedTuple):
    """One entry of `write_files`."""

    path: str
    content: str
