"""What a TPM's register 11 holds when the unified kernel image has been started.

systemd's stub measures its sections there, and nothing else does before the initrd. The image's own systemd-measure,
of the same version as the stub, says what comes of that. Our initrd measures nothing, so no phase is counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from imagebuilder.tools import BuildError, run

_TOOL = "/usr/lib/systemd/systemd-measure"


def expected_pcr11(root: Path, sections: Mapping[str, Path]) -> str:
    """The register's value in the sha256 bank, hex. Leaves files in `root`. Raises ImageError."""
    place = root / "run/measured"
    place.mkdir(parents=True)
    for name, path in sections.items():
        os.link(path, place / name)
    files = [f"--{name}=/run/measured/{name}" for name in sections]
    printed = run(["chroot", root, _TOOL, "calculate", "--bank=sha256", "--phase=", "--json=short", *files])
    try:
        (found,) = json.loads(printed)["sha256"]
        return str(found["hash"])
    except (ValueError, KeyError) as error:
        raise BuildError(f"systemd-measure tells no register: {printed}") from error
