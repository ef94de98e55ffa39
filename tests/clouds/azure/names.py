"""What requests of Azure are called: the kind of resource and the verb."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_LAST_KIND = re.compile(r"/providers/Microsoft\.(?:Compute|Network)/(?P<rest>.+)$", re.IGNORECASE)
_VERBS = {"PUT": "Put", "GET": "Get", "DELETE": "Delete", "POST": "Post", "PATCH": "Patch"}


def name_of(method: str, url: str, _body: bytes = b"") -> str:
    """Such as PutVirtualMachine, ListNetworkInterface or Token."""
    path = urlsplit(url).path
    if path.endswith(("/token", "/openid-configuration")):
        return "Token"
    match = _LAST_KIND.search(path)
    if match is None:
        return f"{method} {path}"
    words = match["rest"].strip("/").split("/")
    if words[-1].lower() == "instanceview":
        return "GetInstanceView"
    if words[0].lower() == "locations":
        return "ListUsages" if words[-1].lower() == "usages" else "GetOperation"
    kind = words[-1] if len(words) % 2 else words[-2]
    kind = kind[0].upper() + kind[1:].removesuffix("s").replace("Addresse", "Address")
    return f"{'List' if method == 'GET' and len(words) % 2 else _VERBS[method]}{kind}"
