"""POST /v1/sizing/explain over the real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from caa.sizing import IMAGE, MACHINE_TYPE, MEMORY, VCPUS
from tests.wire.rest_service import serving, settings_in


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(settings_in(Path(tmp_path_factory.mktemp("rest")))) as service, service.client() as http:
        yield http


def explained(client: httpx.Client, annotations: dict[str, str]) -> Any:
    answer = client.post("/v1/sizing/explain", json={"annotations": annotations})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_would_be_launched_is_told_with_the_place_or_the_reason_of_every_offering(client: httpx.Client) -> None:
    told = explained(client, {MEMORY: "4096", "something/else": "x"})
    assert told["wanted"] == {"machine_type": "", "vcpus": 0, "memory_mib": 4096, "gpus": 0, "gpu_model": ""}
    assert (told["rule"], told["image"], told["refusal"]) == ("size", "ami-1", None)
    assert [(one["order"], one["type"], one["zone"]) for one in told["offerings"]] == [
        (1, "m6a.xlarge", "eu-1a"),  # the only one with a price
        (2, "m6a.large", "eu-1a"),
        (3, "m6a.large", "eu-1b"),
        (0, "g4dn.xlarge", "eu-1a"),
        (0, "m6g.large", "eu-1a"),
    ]
    assert told["chosen"] == {
        "order": 1,
        "type": "m6a.xlarge",
        "zone": "eu-1a",
        "market": "on-demand",
        "arch": "x86_64",
        "vcpus": 4,
        "memory_mib": 16384,
        "gpus": 0,
        "gpu_model": "",
        "price": 0.1728,
        "refused": None,
        "passed_over": None,
    }
    assert told["offerings"][4]["refused"] == "is arm64, and the image is x86_64"


def test_what_was_refused_a_moment_ago_is_passed_over(client: httpx.Client) -> None:
    told = explained(client, {})
    assert told["rule"] == "default"
    assert "NoneLeft" in told["offerings"][0]["passed_over"]
    assert (told["chosen"]["order"], told["chosen"]["zone"]) == (2, "eu-1b")


@pytest.mark.parametrize(
    ("annotations", "reason", "said"),
    [
        ({MACHINE_TYPE: "m9.huge"}, "NoInstanceType", '("m9.huge") is not part of supported instance types list'),
        ({VCPUS: "99"}, "NoInstanceType", "given vcpus (99) and memory (0)"),
        ({IMAGE: "ami-9"}, "ImageNotAllowed", "PODVM_IMAGES allows: ami-2"),
    ],
)
def test_that_nothing_would_be_launched_is_an_answer_too(
    client: httpx.Client, annotations: dict[str, str], reason: str, said: str
) -> None:
    told = explained(client, annotations)
    assert told["chosen"] is None
    assert told["refusal"]["reason"] == reason
    assert said in told["refusal"]["detail"]
    assert len(told["offerings"]) == 5


def test_garbage_is_a_problem_that_names_the_annotation(client: httpx.Client) -> None:
    answer = client.post("/v1/sizing/explain", json={"annotations": {VCPUS: "many"}})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["reason"], problem["field"]) == ("InvalidInput", VCPUS)
    assert "'many'" in problem["detail"]
    assert client.post("/v1/sizing/explain", json={"annotation": {}}).status_code == 422
    assert client.get("/v1/sizing/explain").status_code == 405
