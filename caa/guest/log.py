"""Log lines of the guest: one line on standard error, which systemd sends to the journal and the serial console.

Not the logging package, for its import costs more than all that is logged here.
"""

from __future__ import annotations

import sys


def log(message: str) -> None:
    """Write one line. `message` holds no keys and no user data; control characters are shown escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
