"""The emulated Azure as a process: `python -m tests.clouds.azure`. Ends when its standard input does.

Two ports: Microsoft Entra tokens and the resource manager over TLS, and in plain HTTP the control verbs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import threading
import time
import traceback
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.clouds.aws.conditions import CapacityRule, Delays, Staleness
from tests.clouds.azure import catalog
from tests.clouds.azure.arm import DEFINITIONS, ELSEWHERE, GROUP, LOCATION, NSG, SUBNET, SUBSCRIPTION, Group
from tests.clouds.azure.conditions import Conditions
from tests.clouds.azure.errors import ArmError
from tests.clouds.azure.names import name_of
from tests.clouds.process import end_with_parent
from tests.clouds.serving import Server

CONTROL_PREFIX = "/_control/"
_WATCH_SECONDS, _MAX_WAIT_SECONDS = 0.01, 30.0
_IN_GROUP = re.compile(
    rf"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/(?P<kind>Microsoft\.\w+/\w+)(?P<rest>/.+)?",
    re.IGNORECASE,
)
Answer = tuple[int, dict[str, str], bytes]


class Emulator:
    """Everything behind both ports, behind one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.group = Group(Conditions())

    def answer_cloud(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request of the cloud's APIs."""
        parts, base, name = urlsplit(url), f"https://{headers['host']}", name_of(method, url)
        extra = {"x-ms-request-id": str(uuid.uuid4())}
        with self.lock:
            self.group.settle()
            conditions = self.group.conditions
            try:
                conditions.admit(name)
                if name == "Token":
                    return _json(200, _token(parts.path, base, body))
                if headers.get("authorization") != "Bearer token":
                    raise ArmError(401, "InvalidAuthenticationToken", "The access token is missing or invalid.")
                if "api-version" not in parse_qs(parts.query):
                    raise ArmError(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
                status, more, result = self._arm(method, parts.path, base, json.loads(body) if body else {})
            except Exception as error:
                refusal = error if isinstance(error, ArmError) else _broken()
                conditions.errors[f"{name} {refusal.code}"] += 1
                status, more, result = refusal.status, refusal.headers, refusal.body
            self.group.settle()
            status, kind, answer = _json(status, result)
            return status, kind | extra | more, answer

    def _arm(self, method: str, path: str, base: str, body: Any) -> tuple[int, dict[str, str], Any]:
        location = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute"
        if path.lower() == f"{location}/skus".lower():
            return 200, {}, {"value": catalog.skus(LOCATION, self.group.conditions.barred)}
        if path.lower() == f"{location}/locations/{LOCATION}/usages".lower():
            return 200, {}, {"value": self._usages()}
        if "/operations/" in path:
            return 200, {}, {"status": "InProgress"}
        match = _IN_GROUP.fullmatch(path)
        if method == "GET" and path.lower().startswith(f"{ELSEWHERE}/".lower()):
            return 200, {}, self.group.get(path)
        if match is None:
            known = f"/resourceGroups/{GROUP}/".lower() in path.lower()
            code = "ResourceNotFound" if known else "ResourceGroupNotFound"
            raise ArmError(404, code, f"{path} could not be found.")
        if not match["rest"]:
            return 200, {}, {"value": self.group.listed(match["kind"])}
        if method == "GET":
            if path.lower().endswith("/instanceview"):
                return 200, {}, self.group.view(path.rpartition("/")[0])
            return 200, {}, self.group.get(path)
        operation = f"{base}{location}/locations/{LOCATION}/operations/{uuid.uuid4()}?"
        begun = {"Azure-AsyncOperation": f"{operation}api-version=1", "Retry-After": "10"}
        if method == "DELETE":
            status = self.group.delete(path)
            return status, begun | {"Location": f"{operation}monitor=true&api-version=1"} if status == 202 else {}, None
        if method == "PUT" and match["kind"].lower() == "microsoft.compute/virtualmachines":
            status, vm = self.group.put_vm(path, body)
            return status, begun, vm
        raise ArmError(405, "MethodNotAllowed", f"{method} is not emulated here")

    def _usages(self) -> list[dict[str, Any]]:
        names = ["cores", "lowPriorityCores", *dict.fromkeys(family for family, *_ in catalog.SIZES.values())]
        return [
            {
                "unit": "Count",
                "currentValue": self.group.used(name),
                "limit": self.group.conditions.quota.get(name, 100_000),
                "name": {"value": name, "localizedValue": name},
            }
            for name in names
        ]

    def answer_control(self, _method: str, url: str, _headers: dict[str, str], body: bytes) -> Answer:
        """A control verb."""
        name = urlsplit(url).path.removeprefix(CONTROL_PREFIX)
        arguments = json.loads(body) if body else {}
        try:
            if name == "watch":
                return _json(200, self._watch(**arguments))
            with self.lock:
                self.group.settle()
                result = getattr(self, f"do_{name}")(**arguments)
                self.group.settle()
                return _json(200, result)
        except Exception as error:
            traceback.print_exc()
            return _json(400, {"error": f"{type(error).__name__}: {error}"})

    def _watch(self, version: int, seconds: float) -> Any:
        deadline = time.monotonic() + min(seconds, _MAX_WAIT_SECONDS)
        while True:
            with self.lock:
                self.group.settle()
                if self.group.version != version or time.monotonic() >= deadline:
                    return {"version": self.group.version, "guests": self.group.guests()}
            time.sleep(_WATCH_SECONDS)

    # Control verbs

    def do_reset(self) -> None:
        self.group = Group(Conditions(), version=self.group.version + 1)
        catalog.reset()

    def do_seed(self) -> dict[str, Any]:
        self.group.seed()
        images = {name: f"{path}/versions/1.0.0" for name, (path, _, _) in DEFINITIONS.items()}
        return {
            "subscription": SUBSCRIPTION,
            "group": GROUP,
            "region": LOCATION,
            "subnet": SUBNET,
            "nsg": NSG,
            "images": images,
        }

    def do_clock(self, running: bool) -> None:
        self.group.conditions.clock.run(running)

    def do_advance(self, seconds: float) -> None:
        self.group.conditions.clock.advance(seconds)

    def do_delays(self, guest_ready: float = 0.0, **seconds: float) -> None:
        self.group.conditions.delays, self.group.conditions.guest_ready = Delays(**seconds), guest_ready

    def do_capacity(self, rules: list[dict[str, Any]]) -> None:
        self.group.conditions.capacity = [CapacityRule(**rule) for rule in rules]

    def do_failing(self, rules: list[dict[str, Any]]) -> None:
        self.group.conditions.failing = [CapacityRule(**rule) for rule in rules]

    def do_sizes(self, sizes: list[dict[str, Any]]) -> None:
        for size in sizes:
            catalog.add(**size)

    def do_keeping(self, kinds: list[str]) -> None:
        self.group.conditions.keeping = kinds

    def do_quota(self, vcpus: dict[str, int]) -> None:
        self.group.conditions.quota = vcpus

    def do_barred(self, rules: list[dict[str, Any]]) -> None:
        self.group.conditions.barred = rules

    def do_limits(self, limits: dict[str, tuple[float, float]], retry_after: int = 1) -> None:
        self.group.conditions.set_limits({name: (burst, rate) for name, (burst, rate) in limits.items()})
        self.group.conditions.retry_after = retry_after

    def do_staleness(self, **settings: Any) -> None:
        self.group.conditions.staleness = Staleness(**settings)

    def do_counters(self) -> dict[str, Any]:
        return self.group.conditions.describe() | self.group.counters()

    def do_overview(self) -> dict[str, Any]:
        vms = [self.group.resources[key] for key in self.group.lives]
        unused = {
            kind: [{"name": one["name"], "tags": one.get("tags", {})} for one in found]
            for kind, found in self.group.unused().items()
        }
        return {"vms": vms, "made": self.group.made, "ever": self.group.ever, "unused": unused}

    def do_user_data(self, instance_id: str) -> dict[str, Any]:
        return {"user_data": self.group.lives[instance_id.lower()].user_data}

    def do_body(self, name: str) -> dict[str, Any]:
        """Of the PUT that made a VM."""
        return next(dict(body) for key, body in self.group.bodies.items() if key.endswith(f"/{name}"))

    def do_fail(self, name: str, code: str, message: str = "", running: bool = False) -> None:
        """Let a VM's operation fail now."""
        key = next(key for key in self.group.lives if key.endswith(f"/{name}"))
        self.group.lives[key].failure, self.group.lives[key].runs = (code, message), running
        self.group.resources[key]["properties"]["provisioningState"] = "Failed"


def _token(path: str, base: str, body: bytes) -> dict[str, Any]:
    tenant = path.strip("/").split("/")[0]
    if path.endswith("/openid-configuration"):
        return {
            "issuer": f"{base}/{tenant}/v2.0",
            "authorization_endpoint": f"{base}/{tenant}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/{tenant}/oauth2/v2.0/token",
            "tenant_region_scope": "WW",
        }
    form = parse_qs(body.decode())
    if form.get("client_secret", [""])[0] == "wrong":
        raise ArmError(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
    return {"token_type": "Bearer", "expires_in": 3600, "access_token": "token"}


def _broken() -> ArmError:
    """For a defect of the emulator itself, which a test that fails wants to see."""
    traceback.print_exc()
    return ArmError(500, "InternalServerError", "An unexpected error occurred")


def _json(status: int, result: object) -> Answer:
    return status, {"Content-Type": "application/json"}, b"" if result is None else json.dumps(result).encode()


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", required=True, help="certificate and key, PEM")
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.pair)
    emulator = Emulator()
    cloud, control = Server(emulator.answer_cloud, context), Server(emulator.answer_control)
    end_with_parent()
    threading.Thread(target=control.serve_forever, daemon=True).start()
    with os.fdopen(arguments.ready_fd, "w") as ready:
        ready.write(f"{cloud.server_port} {control.server_port}\n")
    cloud.serve_forever()


if __name__ == "__main__":
    main()
