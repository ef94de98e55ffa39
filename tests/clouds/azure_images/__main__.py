"""The emulated Azure as a process: `python -m tests.clouds.azure_images`. Ends when its standard input does.

One port, TLS: Microsoft Entra tokens, the resource manager, and the page blobs of disks that may be written to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import ssl
import threading
import traceback
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.clouds.process import end_with_parent
from tests.clouds.serving import Server

PAGE = 512
LARGEST_PUT = 4 << 20
_COMPUTE = re.compile(r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Compute/(?P<rest>.+)")
_PARENTS = {"galleries": 2, "images": 4}
Answer = tuple[int, dict[str, str], bytes]


class ArmError(Exception):
    """A refusal, as the resource manager sends it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Azure:
    """Everything, behind one lock. Resources by their path below Microsoft.Compute, lower-case."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, dict[str, Any] | None] = {}
        self.puts: Counter[tuple[str, int]] = Counter()
        self.bytes_put = 0
        self.calls: Counter[str] = Counter()

    def answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request."""
        parts = urlsplit(url)
        base = f"https://{headers['host']}"
        with self.lock:
            try:
                if parts.path.startswith("/_control/"):
                    return _json(200, getattr(self, parts.path.removeprefix("/_control/"))() or {})
                if parts.path.endswith("/openid-configuration"):
                    return _json(200, _openid(base, parts.path.split("/")[1]))
                if parts.path.endswith("/token"):
                    return _json(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": "token"})
                if parts.path.startswith("/blobs/"):
                    return self._blob(method, parts.path.removeprefix("/blobs/"), parts.query, headers, body)
                if headers.get("authorization") != "Bearer token":
                    raise ArmError(401, "InvalidAuthenticationToken", "The access token is invalid.")
                return self._resource_manager(method, parts.path, base, body)
            except ArmError as error:
                return _json(error.status, {"error": {"code": error.code, "message": str(error)}})
            except Exception:
                traceback.print_exc()
                return _json(500, {"error": {"code": "InternalError", "message": "a defect"}})

    def state(self) -> dict[str, Any]:
        """For the tests."""
        shown = {path: one["properties"] | {"tags": one.get("tags", {})} for path, one in self.resources.items()}
        pages = {disk: sorted(blob["pages"]) for disk, blob in self.blobs.items()}
        again = sum(count - 1 for count in self.puts.values())
        return {"resources": shown, "pages": pages, "bytes": self.bytes_put, "again": again, "calls": self.calls}

    # The resource manager

    def _resource_manager(self, method: str, path: str, base: str, body: bytes) -> Answer:
        if "/operations/" in path:
            return _json(200, {"status": "Succeeded"})
        if "/operationResults/" in path:
            result = self.operations[path.rpartition("/")[2]]
            return _json(200, result) if result is not None else (204, {}, b"")
        match = _COMPUTE.fullmatch(path)
        if match is None:
            raise ArmError(404, "InvalidResourceType", f"no such resource type: {path}")
        rest = match["rest"]
        self.calls[f"{method} {rest.split('/')[0]}"] += 1
        asked = json.loads(body) if body else {}
        segments = rest.split("/")
        if method == "POST":
            return self._access(path, "/".join(segments[:-1]).lower(), segments[-1], base, asked)
        if method == "GET" and len(segments) % 2:  # of a collection
            below = rest.lower() + "/"
            found = [
                one for key, one in self.resources.items() if key.startswith(below) and "/" not in key[len(below) :]
            ]
            return _json(200, {"value": found})
        key = rest.lower()
        if method == "GET":
            if key not in self.resources:
                raise ArmError(404, "ResourceNotFound", f"The Resource '{rest}' was not found.")
            return _json(200, self.resources[key])
        if method == "DELETE":
            return self._delete(key, base)
        return self._put(path, key, segments, base, asked)

    def _put(self, path: str, key: str, segments: list[str], base: str, asked: dict[str, Any]) -> Answer:
        if len(segments) > 2 and "/".join(segments[:-2]).lower() not in self.resources:
            raise ArmError(404, "ParentResourceNotFound", "The parent resource is not there.")
        before = self.resources.get(key)
        properties = dict(asked["properties"]) if "properties" in asked else {}
        made = {"id": path, "name": segments[-1], "location": asked["location"], "tags": asked.get("tags", {})}
        made["properties"] = properties | {"provisioningState": "Succeeded"}
        if segments[0] == "disks":
            if before is not None:  # the same again
                return self._begun(202, before, base)
            size = properties["creationData"]["uploadSizeBytes"]
            if (size - PAGE) % (1 << 20):
                raise ArmError(400, "BadRequest", "uploadSizeBytes must be whole MiB and a footer of 512 bytes.")
            made["properties"] |= {"diskState": "ReadyToUpload"}
            self.blobs[key] = {"size": size, "pages": {}, "sas": ""}
        if segments[-2] == "versions":
            source = str(properties["storageProfile"]["osDiskImage"]["source"]["id"])
            disk = _COMPUTE.fullmatch(source)
            there = self.resources.get(disk["rest"].lower()) if disk else None
            if there is None or there["properties"]["diskState"] != "Unattached":
                raise ArmError(409, "Conflict", f"The source {source} is not there, or is being written to.")
        self.resources[key] = made
        return self._begun(202 if segments[0] == "disks" else 201, made, base)

    def _delete(self, key: str, base: str) -> Answer:
        if key not in self.resources:
            return 204, {}, b""
        if any(other.startswith(key + "/") for other in self.resources):
            raise ArmError(409, "CannotDeleteResource", "Can not delete resource before nested resources are deleted.")
        if self.resources[key]["properties"].get("diskState") == "ActiveUpload":
            raise ArmError(409, "OperationNotAllowed", "The disk has an active shared access signature.")
        del self.resources[key]
        self.blobs.pop(key, None)
        return self._begun(202, None, base)

    def _access(self, path: str, key: str, verb: str, base: str, asked: dict[str, Any]) -> Answer:
        disk = self.resources.get(key)
        if disk is None:
            raise ArmError(404, "ResourceNotFound", f"The Resource '{key}' was not found.")
        if verb == "endGetAccess":
            if disk["properties"]["diskState"] == "ActiveUpload":
                disk["properties"]["diskState"] = "Unattached"
            self.blobs[key]["sas"] = ""
            return self._begun(202, {}, base)
        if disk["properties"]["diskState"] not in ("ReadyToUpload", "ActiveUpload") or asked["access"] != "Write":
            raise ArmError(409, "OperationNotAllowed", f"The disk is {disk['properties']['diskState']}.")
        disk["properties"]["diskState"] = "ActiveUpload"
        self.blobs[key]["sas"] = self.blobs[key]["sas"] or secrets.token_hex(8)
        url = f"{base}/blobs/{key}/abcd?sv=2018-03-28&sr=b&sig={self.blobs[key]['sas']}"
        return self._begun(202, {"accessSAS": url}, base)

    def _begun(self, status: int, result: dict[str, Any] | None, base: str) -> Answer:
        """A long-running operation, which is over at the first look."""
        number = secrets.token_hex(8)
        self.operations[number] = result
        where = f"{base}/subscriptions/s/providers/Microsoft.Compute/locations/l/operations/{number}?api-version=1"
        result_at = where.replace("/operations/", "/operationResults/")
        answer = _json(status, result if result is not None else {})
        return status, answer[1] | {"Azure-AsyncOperation": where, "Location": result_at, "Retry-After": "0"}, answer[2]

    # Page blobs

    def _blob(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        key = path.rpartition("/")[0]
        blob, given = self.blobs.get(key), parse_qs(query)
        if blob is None or not blob["sas"] or given.get("sig", [""])[0] != blob["sas"]:
            return 403, {"x-ms-error-code": "AuthenticationFailed"}, b""
        if method != "PUT" or given.get("comp", [""])[0] != "page":
            return 409, {"x-ms-error-code": "BlobOperationNotSupported"}, b""
        first, last = (int(number) for number in headers["x-ms-range"].removeprefix("bytes=").split("-"))
        whole = not first % PAGE and not (last + 1) % PAGE and last < blob["size"] and last - first + 1 == len(body)
        if not whole or len(body) > LARGEST_PUT:
            return 400, {"x-ms-error-code": "InvalidPageRange"}, b""
        blob["pages"][first] = len(body)
        self.puts[key, first] += 1
        self.bytes_put += len(body)
        common = {
            "ETag": '"1"',
            "Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT",
            "x-ms-request-server-encrypted": "true",
        }
        return 201, common, b""


def _openid(base: str, tenant: str) -> dict[str, Any]:
    return {
        "issuer": f"{base}/{tenant}/v2.0",
        "authorization_endpoint": f"{base}/{tenant}/oauth2/v2.0/authorize",
        "token_endpoint": f"{base}/{tenant}/oauth2/v2.0/token",
        "tenant_region_scope": "WW",
    }


def _json(status: int, result: object) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(result).encode()


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.pair)
    server = Server(Azure().answer, context)
    end_with_parent()
    with os.fdopen(arguments.ready_fd, "w") as ready:
        ready.write(f"{server.server_port}\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
