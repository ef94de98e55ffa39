"""Initdata: measured configuration of the guest's attestation parts, as base64 of gzip of TOML.

    algorithm = "sha256"
    version = "0.1.0"

    [data]
    "aa.toml" = '''...'''

Each entry of `data` is a file below /run/peerpod; the digest of the TOML text is what the VM attests to. Initdata that
cannot be read is an error, never ignored: a VM without it would attest to something its sender did not ask for.
"""

from __future__ import annotations

from caa.guest.log import log

DIGEST = "/run/peerpod/initdata.digest"
ALGORITHMS = ("sha256", "sha384", "sha512")

# Name in `data` -> path. Names are compared as text, so no spelling of another path gets through.
FILES = {name: f"/run/peerpod/{name}" for name in ("aa.toml", "cdh.toml", "policy.rego")}

# User data is shorter than 256 KiB, and what it unpacks to must not fill the memory.
MAX_TOML_BYTES = 1 << 20

# For a VM that was given none: an empty aa.toml, whose appearance starts the attestation agent. The digest is part
# of what such a VM attests to, so the text is the one that guests of this kind have always used. Ready-made, for
# importing what makes it takes longer than everything else that is done before the port opens.
NONE_GIVEN_TOML = b"algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n'''"
NONE_GIVEN = (
    "H4sIAAAAAAACA0vMSc8vyizJyFWwVVAqzkg0MjVT4ipLLSrOzM8DCRnoGeoZKHFxRackliTGciklJuqV5OfmKAHl1NXVuYAYACVzsg5CAAAA"
)
NONE_GIVEN_FILES = {
    DIGEST: "adb48cc14fea9403d3d51f3b5f5068fd4d80445a14e94f1b3d5dbabaad66478d",
    FILES["aa.toml"]: "",
}


class InitdataError(Exception):
    """The initdata is not what a pod VM accepts. Names the key and what is allowed, never the content of a file."""


def read_initdata(text: str) -> dict[str, str]:
    """Path -> content of the files to write, the digest first. Raises InitdataError."""
    # Only a VM that was given initdata pays for these.
    import hashlib
    import tomllib

    toml = _unpack(text)
    try:
        document = tomllib.loads(toml.decode())
    except UnicodeDecodeError as error:
        raise InitdataError(f"initdata is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError):  # its text may quote the content
        raise InitdataError("initdata is not TOML") from None
    algorithm = document.get("algorithm")
    if algorithm not in ALGORITHMS:
        raise InitdataError(f"initdata: algorithm is {str(algorithm)[:40]!r}; allowed: {', '.join(ALGORITHMS)}")
    if not isinstance(document.get("version", ""), str):
        raise InitdataError(f"initdata: version is {str(document['version'])[:40]!r}; allowed: text")
    data = document.get("data", {})
    if not isinstance(data, dict):
        raise InitdataError("initdata: data is not a table; allowed: a table of names and texts")
    files = {DIGEST: hashlib.new(algorithm, toml).hexdigest()}
    for name, content in data.items():
        if not isinstance(content, str):
            raise InitdataError(f"initdata: data.{name[:40]!r} is not text")
        if name in FILES:
            files[FILES[name]] = content
        else:
            log(f"initdata: skipped {name[:200]!r}; allowed are {', '.join(FILES)}")
    return files


def _unpack(text: str) -> bytes:
    import base64
    import zlib

    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise InitdataError("initdata is not base64") from None
    unpacker = zlib.decompressobj(wbits=31)  # gzip, whose checksum is checked
    try:
        toml = unpacker.decompress(packed, MAX_TOML_BYTES + 1)
    except zlib.error:
        raise InitdataError("initdata is not base64 of gzip") from None
    if len(toml) > MAX_TOML_BYTES:
        raise InitdataError(f"initdata unpacks to more than {MAX_TOML_BYTES} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise InitdataError("initdata is not base64 of gzip: it is cut short, or something follows it")
    return toml
