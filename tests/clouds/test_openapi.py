"""The REST interface is what its OpenAPI description says, whatever it is sent: generated calls to a real service."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from caa.api.rest.auth import OPEN_PATHS
from tests.clouds.aws.account import Account
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.podworld import pod_service
from tests.lab.ports import held_port
from tests.lab.service import new_id, pod_annotations

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Of each operation. The soak finds what is rare.
EXAMPLES = 200 if os.environ.get("CAA_SOAK") else 12
TOKEN = "the-token-of-this-test"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def api_schema(aws_emulator: AwsEmulator, ec2: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The description that a real service on the emulated EC2 gives of itself, over TCP."""
    aws_emulator.reset()
    aws_emulator.run_clock()
    account = Account(aws_emulator, ec2, aws_emulator.seed())
    token = tmp_path_factory.mktemp("api") / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    listen = f"127.0.0.1:{held_port()}"
    with (
        FakeGuests(aws_emulator.url),
        pod_service(account, aws_emulator.url, CAA_API_LISTEN=listen, CAA_API_TOKEN_FILE=str(token)) as service,
    ):
        document = httpx.get(f"http://{listen}/openapi.json", headers=HEADERS, timeout=60, trust_env=False).json()
        for operation in (one for item in document["paths"].values() for one in item.values()):
            # "Any other error" would have every status described; nothing here is unforeseen.
            del operation["responses"]["default"]
        schema: Any = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=f"http://{listen}")
        schema.known = [new_id() for _ in range(3)]
        for sandbox_id in schema.known:
            service.create(sandbox_id, f"pod-{sandbox_id[:8]}")
        service.start_sandbox(schema.known[0])
        service.stop_sandbox(schema.known[1])
        yield schema
        assert "Traceback" not in service.log_file.read_text()


@pytest.fixture
def known(api_schema: Any) -> list[str]:
    """Sandboxes that are there: one that runs, one that ended, one that was created."""
    return list(api_schema.known)


def test_every_answer_is_as_described(api_schema: Any, known: list[str]) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    for result in api_schema.get_all_operations():
        call_generated(result.ok(), known, answers, GenerationMode.POSITIVE)
    tell(answers)
    assert {200, 201, 204, 400, 404, 409} <= {status for _, status in answers}


def test_what_does_not_fit_the_description_is_refused_as_described(api_schema: Any, known: list[str]) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    for operation in (result.ok() for result in api_schema.get_all_operations()):
        if operation.definition.raw.keys() & {"parameters", "requestBody"}:
            call_generated(operation, known, answers, GenerationMode.NEGATIVE)
    tell(answers)
    assert {400, 422} <= {status for _, status in answers}


def tell(answers: Counter[tuple[str, int]]) -> None:
    """What was seen, for whoever wants to know."""
    print(f"{answers.total()} calls, each answered as described:")
    for (label, status), count in sorted(answers.items()):
        print(f"  {label}: {status} {count} times")


def call_generated(operation: Any, known: list[str], answers: Counter[tuple[str, int]], mode: GenerationMode) -> None:
    """Call one operation in many ways, and count its answers."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=not os.environ.get("CAA_SOAK"),
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode), sandbox_id=st.sampled_from(["", *known]))
    def call(case: Any, sandbox_id: str) -> None:
        if sandbox_id and mode is GenerationMode.POSITIVE:
            to_the_point(case, sandbox_id)
        answer = case.call(headers=HEADERS, timeout=60)
        answers[operation.label, answer.status_code] += 1
        case.validate_response(answer, checks=[*CHECKS, negative_data_rejection])

    call()


def to_the_point(case: Any, sandbox_id: str) -> None:
    """What would else be about sandboxes that are not there, or without a pod, is about one that is."""
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = sandbox_id
    if isinstance(case.body, dict) and "id" in case.body:
        case.body["annotations"] = {**dict(case.body.get("annotations") or {}), **pod_annotations("generated")}
        case.body.pop("network_namespace_path", None)


def test_every_operation_refuses_a_caller_without_the_token(api_schema: Any) -> None:
    for result in api_schema.get_all_operations():
        operation = result.ok()
        if operation.path in OPEN_PATHS:  # probes hold no secret
            continue
        url = f"{operation.base_url}{operation.path}"
        answer = httpx.request(operation.method.upper(), url, timeout=60, trust_env=False)
        assert answer.status_code == 401, operation.path
