"""AdmissionReview in, AdmissionReview out (admission.k8s.io/v1). Pure."""

from __future__ import annotations

import base64
import json
from typing import Any

from caa.webhook.mutation import patch

API_VERSION = "admission.k8s.io/v1"


class BadReviewError(ValueError):
    """The body is no AdmissionReview."""


def answer(body: bytes, runtime_class: str) -> dict[str, Any]:
    """The reply to one review. A pod that cannot be sized is refused with the reason. Raises BadReviewError."""
    try:
        review = json.loads(body)
        request = review["request"]
        uid, pod = request["uid"], request["object"]
        if review["apiVersion"] != API_VERSION or not isinstance(pod, dict):
            raise BadReviewError(f"must be an AdmissionReview of {API_VERSION} with an object")
    except (ValueError, KeyError, TypeError) as error:
        raise BadReviewError(f"no AdmissionReview of {API_VERSION}: {error!r}") from None
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    try:
        operations = patch(pod, runtime_class)
    except ValueError as error:
        response = {"uid": uid, "allowed": False, "status": {"code": 422, "reason": "Invalid", "message": str(error)}}
    else:
        if operations:
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(operations).encode()).decode()}
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
