"""`docs/configuration.md`, made from the keys as the code declares them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from caa.knownkeys import ALL_CLOUDS, WITHOUT_USE, Key, every_key

_TOP = """# Configuration

<!-- Written by `caa config docs`. Change the descriptions in the code, and write this file anew. -->

Keys have the incumbent's names, so `peer-pods-cm` and `peer-pods-secret` work as they are. A key is looked for

1. in the directory `CAA_CONFIG_DIR`, where the ConfigMap is mounted: one file for each key;
2. in the directory `CAA_SECRET_DIR`, where the Secret is mounted;
3. in the environment.

The first that has it decides. An empty value counts as unset. Without the two directories everything comes from the
environment, and a change needs a restart.

With `CAA_CONFIG_NAMESPACE` the two objects are watched at the API server, and take the place of the two directories as
soon as it has answered; see docs/podevents.md.

The directories are looked at every second. A change is checked as a whole, the cloud asked included, and applies
as a whole to the sandboxes that start from then on; those that run or are starting keep what they began with. If
anything is wrong, nothing of the change applies: the log and `GET /v1/config/status` say which key it is and why. Where
the last column says *restart*, the new value waits for a restart of `caa serve`, which running sandboxes do not notice
either, and the status names the key. Move a whole directory at once, as Kubernetes does with its link `..data`, when
keys belong together. A key that is mounted alone, by `subPath`, never changes: Kubernetes leaves it as it was.

- `caa config check` tells every problem at once, and ends with 1 if there is any.
- `caa config show` lists every key, its value (secrets masked) and where it came from, and keys that look misspelt.

A duration is written as `90s`, `5m` or `1h30m`; a list has commas between its parts.
"""


def markdown() -> str:
    """The whole file."""
    keys = every_key()
    parts = [_TOP]
    for cloud in dict.fromkeys(key.cloud for key in keys):
        title = "All clouds" if cloud == ALL_CLOUDS else f"`CLOUD_PROVIDER={cloud}`"
        parts.append(f"## {title}\n\n{_table(key for key in keys if key.cloud == cloud)}")
    listed = "".join(f"- `{key}`: {why}.\n" for key, why in WITHOUT_USE.items())
    parts.append(f"## Keys of the incumbent without a use\n\nThey may stay where they are.\n\n{listed}")
    return "\n".join(parts)


def _table(keys: Iterable[Key]) -> str:
    rows = ["| key | default | allowed | what it is | applies |", "| --- | --- | --- | --- | --- |"]
    for key in sorted(keys, key=lambda key: key.name):
        default = "(required)" if key.default is None else f"`{key.default}`" if key.default else ""
        cells = (f"`{key.name}`", default, key.allowed, key.description, "at once" if key.live else "restart")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
