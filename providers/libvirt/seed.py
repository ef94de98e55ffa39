"""The NoCloud seed: an ISO9660 image labelled `cidata`, which carries the user data into the pod VM."""

from __future__ import annotations

import io

import pycdlib

LABEL = "cidata"


def seed_iso(host_name: str, user_data: bytes) -> bytes:
    """Build the seed in memory. Holds the pod VM's TLS key: write it nowhere but into its volume.

    Rock Ridge and Joliet both carry the lower-case names; plain ISO9660 has none.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        files = (
            ("USERDATA", "user-data", user_data),
            ("METADATA", "meta-data", f"local-hostname: {host_name}\n".encode()),
            ("VENDORDA", "vendor-data", b""),
        )
        for short, name, content in files:
            iso.add_fp(io.BytesIO(content), len(content), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}")
        out = io.BytesIO()
        iso.write_fp(out)
    finally:
        iso.close()
    return out.getvalue()
