"""Prints what Python packages are installed beside it, as a CycloneDX 1.5 document. Debian's are in dpkg's own list."""

from __future__ import annotations

import json
import sys
from importlib.metadata import distributions


def document() -> dict[str, object]:
    """The same for the same packages: no time, no random serial number."""
    found = sorted({(one.metadata["Name"], one.version) for one in distributions()}, key=lambda one: one[0].lower())
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
            }
            for name, version in found
        ],
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
