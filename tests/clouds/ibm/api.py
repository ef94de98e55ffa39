"""The APIs as handlers: VPC, IAM, tagging, the worker's instance metadata. Runs with the emulator's one lock held."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.clouds.ibm import catalog, images, instances
from tests.clouds.ibm.conditions import MAX_PAGE, PAGE, Conditions
from tests.clouds.ibm.errors import ApiError, bad_field, not_found
from tests.clouds.ibm.objectstorage import Buckets
from tests.clouds.ibm.region import KINDS, Region, Resource

API_KEY = "not-checked-by-anybody-else"
PROFILE_ID = "Profile-11111111-2222-3333-4444-555555555555"
TOKEN_SECONDS = 3600
# Collections that may be deleted from by id, and are then gone at once.
_DELETABLE = ("virtual_network_interfaces", "volumes", "floating_ips")
# What a page calls its items where that is not the collection's name.
_ITEMS = {"dedicated_host_groups": "groups"}
_USED_BY = {"virtual_network_interfaces": "target", "volumes": "volume_attachments"}
Answer = tuple[int, dict[str, Any] | None]


class Api:
    """One region of one account."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.region = Region(name, Conditions())
        self.reset()

    def reset(self) -> None:
        """Forget everything, conditions and clock included."""
        self.conditions = Conditions()
        self.region = Region(self.name, self.conditions, self.region.base, version=self.region.version + 1)
        self.buckets = Buckets()
        self.worker: Resource = {}

    # VPC

    def vpc(self, method: str, path: str, query: Mapping[str, str], asked: Any, token: str) -> Answer:
        """One request below /v1. Raises ApiError."""
        _check_token(token)
        if query.get("generation") != "2" or not query.get("version"):
            raise ApiError(400, "invalid_generation_parameter", "generation=2 and version are required")
        if query["version"] > time.strftime("%Y-%m-%d"):
            raise ApiError(400, "invalid_version_range", "The version must not be in the future")
        path = path.replace("/dedicated_host/groups", "/dedicated_host_groups")
        kind, _, one = path.strip("/").partition("/")
        if kind == "instance":
            return 200, self._profiles(one, query)
        if kind == "operating_systems":
            return 200, self._systems(one, query)
        if kind not in KINDS:
            raise ApiError(404, "invalid_route", "The requested route does not exist")
        match method, bool(one):
            case "GET", True:
                return 200, self._get(kind, one)
            case "GET", False:
                return 200, self._page(kind, self._listed(kind, query), query)
            case "POST", False:
                return 201, self._create(kind, asked)
            case "DELETE", True:
                self._delete(kind, one)
                return 202 if kind == "images" else 204, None
        raise ApiError(405, "method_not_allowed", f"{method} is not allowed here")

    def _profiles(self, path: str, query: Mapping[str, str]) -> Resource:
        found = catalog.profiles(self.region.base, self.region.zones)
        _, _, name = path.partition("/")
        if not name:
            return self._page("profiles", list(found.values()), query, key="name", path="instance/profiles")
        if name not in found:
            raise not_found("instance_profile", name)
        return found[name]

    def _systems(self, name: str, query: Mapping[str, str]) -> Resource:
        found = catalog.systems(self.region.base)
        if not name:
            return self._page("operating_systems", list(found.values()), query, key="name")
        if name not in found:
            raise not_found("operating_system", name)
        return found[name]

    def _listed(self, kind: str, query: Mapping[str, str]) -> list[Resource]:
        found = instances.visible(self.region) if kind == "instances" else list(self.region.kinds[kind].values())
        tests: dict[str, Callable[[Resource], Any]] = {
            "name": lambda one: one["name"],
            "resource_group.id": lambda one: one["resource_group"]["id"],
            "vpc.id": lambda one: one["vpc"]["id"],
            "zone.name": lambda one: one["zone"]["name"],
        }
        for field, value in query.items():
            if field in tests:
                found = [one for one in found if tests[field](one) == value]
            elif field not in ("version", "generation", "start", "limit", "sort"):
                raise bad_field(field, f"{field} is no filter of {kind}")
        return [images.shown(one) for one in found] if kind == "images" else found

    def _page(
        self, kind: str, found: list[Resource], query: Mapping[str, str], key: str = "id", path: str = ""
    ) -> Resource:
        limit = int(query.get("limit", PAGE))
        if not 1 <= limit <= MAX_PAGE:
            raise bad_field("limit", f"limit must be 1 to {MAX_PAGE}")
        limit = min(limit, self.conditions.page_size)
        # A page begins with what the last one named, or after all that is gone since.
        ordered = sorted(found, key=lambda one: str(one[key]))
        rest = [one for one in ordered if str(one[key]) >= query.get("start", "")]
        href = f"{self.region.base}/{path or kind}?"
        page: Resource = {
            "first": {"href": href + urlencode({"limit": limit})},
            "limit": limit,
            "total_count": len(found),
            _ITEMS.get(kind, kind): rest[:limit],
        }
        if len(rest) > limit:
            page["next"] = {"href": href + urlencode({"limit": limit, "start": rest[limit][key]})}
        return page

    def _get(self, kind: str, one: str) -> Resource:
        if kind == "instances":
            return instances.get(self.region, one)
        found = self.region.kinds[kind].get(one)
        if found is None:
            raise not_found(kind.removesuffix("s"), one)
        return images.shown(found) if kind == "images" else found

    def _create(self, kind: str, asked: Any) -> Resource:
        if not isinstance(asked, dict):
            raise ApiError(400, "invalid_request_field", "The body must be an object")
        if kind == "instances":
            return instances.shown(self.region, instances.create(self.region, asked))
        if kind == "images":
            return images.shown(images.create(self.region, self.buckets, asked))
        raise ApiError(405, "method_not_allowed", f"{kind} are not made here")

    def _delete(self, kind: str, one: str) -> None:
        if kind == "instances":
            instances.delete(self.region, one)
        elif kind == "images":
            images.delete(self.region, one)
        elif kind in _DELETABLE:
            found = self.region.kinds[kind].get(one)
            if found is None:
                raise not_found(kind.removesuffix("s"), one)
            if found.get(_USED_BY.get(kind, "")):
                raise ApiError(409, f"{kind.removesuffix('s')}_in_use", f"{one} is in use")
            if kind == "virtual_network_interfaces":
                self.region.remove_interface(one)
            else:
                del self.region.kinds[kind][one]
        else:
            raise ApiError(405, "method_not_allowed", f"{kind} are not deleted here")

    # IAM, tagging

    def token(self, form: Mapping[str, str]) -> Answer:
        """POST /identity/token. A token of three parts, as SDKs take it apart."""
        grant = form.get("grant_type", "")
        if grant.endswith("apikey") and form.get("apikey") != API_KEY:
            return 400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}
        if grant.endswith("cr-token") and not (form.get("cr_token") and form.get("profile_id") == PROFILE_ID):
            return 400, {"errorCode": "BXNIM0507E", "errorMessage": "The profile does not trust this compute resource."}
        now = int(time.time())
        claims = {"iam_id": "IBMid-1", "iat": now, "exp": now + TOKEN_SECONDS}
        token = ".".join(_base64(part) for part in ({"alg": "RS256"}, claims, {"signature": "-"}))
        times = {"expires_in": TOKEN_SECONDS, "expiration": now + TOKEN_SECONDS}
        return 200, {"access_token": token, "refresh_token": "not_supported", "token_type": "Bearer", **times}

    def tag(self, asked: Any, token: str) -> Answer:
        """POST /v3/tags/attach. To attach what is attached changes nothing."""
        _check_token(token)
        crns = [one["resource_id"] for one in asked["resources"]]
        for crn in crns:
            found = self.region.user_tags.setdefault(crn, [])
            found += [tag for tag in asked["tag_names"] if tag not in found]
        return 200, {"results": [{"resource_id": crn, "is_error": False} for crn in crns]}

    # The worker's own metadata

    def metadata(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """What a worker finds at 169.254.169.254."""
        if (method, path) == ("PUT", "/instance_identity/v1/token"):
            if headers.get("metadata-flavor") != "ibm":
                return 400, {"errors": [{"code": "bad_request", "message": "Metadata-Flavor is required"}]}
            return 200, {"access_token": "of-the-worker", "expires_in": 60}
        if headers.get("authorization") != "Bearer of-the-worker":
            return 401, {"errors": [{"code": "not_authorized", "message": "a token is required"}]}
        if (method, path) == ("GET", "/metadata/v1/instance") and self.worker:
            return 200, self.worker
        return 404, {"errors": [{"code": "not_found", "message": "there is no such metadata"}]}

    def settle(self) -> None:
        """Bring everything to what it is now."""
        self.region.settle()
        images.settle(self.region)


def _base64(part: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def _check_token(token: str) -> None:
    if token.count(".") != 2 or not token.startswith("Bearer "):
        raise ApiError(401, "not_authenticated", "The token is missing or invalid")


def first_values(query: str) -> dict[str, str]:
    """Of a query string or a form."""
    return {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
