"""The fault proxy between a real SDK and the emulated EC2, at each moment of a request."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import (  # type: ignore[import-untyped,unused-ignore]
    ClientError,
    ConnectionClosedError,
    HTTPClientError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped,unused-ignore]

from tests.clouds.aws.account import Account, ec2_client
from tests.clouds.faultproxy import Exchange, Fault, FaultProxy, Phase, make_tls

RUN = "Action=RunInstances"
TOKEN = "sandbox-1-attempt-1"
PATIENCE = 60.0


@pytest.fixture
def proxy(account: Account) -> Iterator[FaultProxy]:
    with FaultProxy(account.emulator.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Any]:
    """A boto3 client through the proxy, without retries."""
    client = ec2_client(proxy.url)
    yield client
    client.close()


@pytest.fixture
def impatient(proxy: FaultProxy) -> Iterator[Any]:
    """For calls that are not answered."""
    client = ec2_client(proxy.url, read_timeout=1)
    yield client
    client.close()


def plain(proxy: FaultProxy, trust: ssl.SSLContext | bool = True) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, verify=trust, trust_env=False, timeout=PATIENCE)


def count(account: Account) -> int:
    return len(account.instances())


def wait_for_one(account: Account) -> None:
    """The client may have given up before the emulator came to it."""
    deadline = time.monotonic() + PATIENCE
    while count(account) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.DROP, Fault.HANG, Fault.STATUS])
def test_before_the_backend_nothing_is_launched(
    account: Account, proxy: FaultProxy, client: Any, impatient: Any, fault: Fault
) -> None:
    proxy.add(fault, Phase.BEFORE, body=RUN)
    with pytest.raises((HTTPClientError, ClientError)):
        (impatient if fault is Fault.HANG else client).run_instances(**account.request(ClientToken=TOKEN))
    assert count(account) == 0
    client.run_instances(**account.request(ClientToken=TOKEN))
    assert count(account) == 1
    outcomes = [(one.number, one.action, one.phase, one.outcome, one.status) for one in proxy.records]
    assert outcomes == [(1, "RunInstances", "before", fault, None), (2, "RunInstances", "", "passed", 200)]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.RESET, ConnectionClosedError),
        (Fault.DROP, ConnectionClosedError),
        (Fault.HANG, ReadTimeoutError),
        (Fault.TRUNCATE, ResponseParserError),
        (Fault.STATUS, ClientError),
    ],
)
@pytest.mark.parametrize(("token", "expected"), [(TOKEN, 1), (None, 2)])
def test_a_reply_lost_after_acting_and_a_repeat_make_one_instance_with_a_token_and_two_without(
    account: Account,
    proxy: FaultProxy,
    client: Any,
    impatient: Any,
    fault: Fault,
    error: type[Exception],
    token: str | None,
    expected: int,
) -> None:
    proxy.add(fault, Phase.AFTER, body=RUN)
    with pytest.raises(error):
        (impatient if fault is Fault.HANG else client).run_instances(**account.request(ClientToken=token))
    wait_for_one(account)
    assert count(account) == 1
    client.run_instances(**account.request(ClientToken=token))
    assert count(account) == expected
    assert proxy.records[0].status == 200


def test_the_sdks_own_retry_of_a_lost_reply_makes_one_instance(account: Account, proxy: FaultProxy) -> None:
    proxy.add(Fault.RESET, Phase.AFTER, body=RUN, times=2)
    patient = ec2_client(proxy.url, attempts=3)
    try:
        patient.run_instances(**account.request())  # the SDK makes one token for its three attempts
    finally:
        patient.close()
    assert proxy.count() == {"RunInstances": 3}
    assert count(account) == 1


def test_a_late_reply_is_a_time_out_that_acted(account: Account, proxy: FaultProxy, impatient: Any) -> None:
    proxy.add(Fault.DELAY, Phase.AFTER, body=RUN, seconds=30)
    with pytest.raises(ReadTimeoutError):
        impatient.run_instances(**account.request(ClientToken=TOKEN))
    wait_for_one(account)
    assert count(account) == 1


def test_a_late_request_acts_after_the_client_gave_up(account: Account, proxy: FaultProxy, impatient: Any) -> None:
    proxy.add(Fault.DELAY, Phase.BEFORE, body=RUN, seconds=5)
    with pytest.raises(ReadTimeoutError):
        impatient.run_instances(**account.request(ClientToken=TOKEN))
    assert count(account) == 0
    wait_for_one(account)


def test_a_rule_can_name_the_number_of_the_request(account: Account, proxy: FaultProxy, client: Any) -> None:
    proxy.add(Fault.STATUS, Phase.BEFORE, body=RUN, at=3, times=None, status=500, reply=b"<Response/>")
    for number in (1, 2):
        client.describe_instances()  # does not count
        client.run_instances(**account.request(ClientToken=f"t{number}"))
    with pytest.raises(ClientError):
        client.run_instances(**account.request(ClientToken="t3"))
    client.run_instances(**account.request(ClientToken="t4"))
    assert count(account) == 3
    assert proxy.count() == {"RunInstances": 4, "DescribeInstances": 2}


def test_a_rule_matches_method_and_url_and_may_stay(proxy: FaultProxy) -> None:
    proxy.add(Fault.STATUS, Phase.BEFORE, method="^GET$", url="/zones/\\d+", status=418, reply=b"tea", times=None)
    with plain(proxy) as http:
        for _ in range(3):
            assert (http.get("/zones/7?x=1").status_code, http.get("/zones/7").text) == (418, "tea")
        assert http.post("/zones/7").status_code != 418
        assert http.get("/zones/x").status_code != 418
    assert proxy.count()["GET /zones/7"] == 6


@pytest.mark.parametrize("phase", [Phase.BEFORE, Phase.AFTER])
def test_reset_is_a_tcp_reset_and_drop_an_orderly_end(proxy: FaultProxy, phase: Phase) -> None:
    request = b"GET /x HTTP/1.1\r\nHost: cloud\r\n\r\n"
    proxy.add(Fault.RESET, phase)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as link:
        link.sendall(request)
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    proxy.add(Fault.DROP, phase)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as link:
        link.sendall(request)
        assert link.recv(1) == b""


def test_many_requests_at_once_are_all_counted_and_answered(account: Account, proxy: FaultProxy) -> None:
    client = ec2_client(proxy.url)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: client.run_instances(**account.request(ClientToken=f"t{number}")), range(32)))
    finally:
        client.close()
    assert proxy.count() == {"RunInstances": 32}
    assert sorted(one.number for one in proxy.records) == list(range(1, 33))
    assert count(account) == 32


CHILD = """
import json, sys
from tests.clouds.aws.account import ec2_client
client = ec2_client(sys.argv[1])
print(client.run_instances(**json.loads(sys.argv[2]))["Instances"][0]["InstanceId"], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("phase", "launched"), [(Phase.BEFORE, 0), (Phase.AFTER, 1), (Phase.DONE, 1)])
def test_a_caller_is_killed_at_the_chosen_moment(
    account: Account, proxy: FaultProxy, phase: Phase, launched: int
) -> None:
    request = json.dumps(account.request(ClientToken=TOKEN))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, proxy.url, request], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        killed: list[Exchange] = []

        def kill(exchange: Exchange) -> None:
            killed.append(exchange)
            os.kill(child.pid, signal.SIGKILL)

        proxy.add(Fault.CALL, phase, body=RUN, call=kill)
        assert child.wait(PATIENCE) == -signal.SIGKILL
    assert [(one.action, one.number) for one in killed] == [("RunInstances", 1)]
    assert count(account) == launched
    assert [(one.phase, one.outcome, one.status) for one in proxy.records] == [
        (phase, "call", None if phase is Phase.BEFORE else 200)
    ]


def test_an_error_in_a_call_is_in_the_record(account: Account, proxy: FaultProxy, client: Any) -> None:
    def fail(_: Exchange) -> None:
        raise ProcessLookupError("no such process")

    proxy.add(Fault.CALL, Phase.DONE, body=RUN, call=fail)
    client.run_instances(**account.request())
    client.describe_instances()
    assert proxy.records[0].outcome == "call failed: ProcessLookupError('no such process')"


def test_a_backend_that_is_gone_is_a_reset_and_a_record(proxy: FaultProxy) -> None:
    with FaultProxy("http://127.0.0.1:1") as lost, plain(lost) as http:
        with pytest.raises(httpx.TransportError):
            http.get("/")
        assert lost.records[0].outcome == "backend: ConnectionRefusedError"


def test_rules_that_cannot_work_are_refused(proxy: FaultProxy) -> None:
    for fault, phase in ((Fault.RESET, Phase.DONE), (Fault.TRUNCATE, Phase.BEFORE), (Fault.CALL, Phase.BEFORE)):
        with pytest.raises(ValueError):
            proxy.add(fault, phase)


def test_tls_in_front_and_behind(account: Account, tmp_path: Path) -> None:
    context, ca_file = make_tls(tmp_path / "keys")
    trust = ssl.create_default_context(cafile=str(ca_file))
    with FaultProxy(account.emulator.url, tls=context) as inner, FaultProxy(inner.url, context, trust) as outer:
        with plain(outer, trust) as http:
            assert http.post("/_control/counters", json={}).status_code == 200
            outer.add(Fault.RESET, Phase.AFTER)
            with pytest.raises(httpx.TransportError):
                http.post("/_control/counters", json={})
        assert [one.status for one in inner.records] == [200, 200]


def test_a_proxy_that_ends_leaves_no_connection_open(account: Account, tmp_path: Path) -> None:
    context, _ = make_tls(tmp_path / "keys")
    for tls in (None, context):
        with FaultProxy(account.emulator.url, tls) as proxy, contextlib.ExitStack() as links:
            proxy.add(Fault.HANG, Phase.BEFORE, times=None)
            for said in (b"", b"GET /x HTTP/1.1\r\nHost: cloud\r\n\r\n") * 4:
                link = links.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE))
                link.sendall(said)
            silent = links.pop_all()
        with silent, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
        assert not caught, caught[0].message


def test_it_is_known_when_all_that_a_dead_client_had_sent_has_come_through(account: Account, proxy: FaultProxy) -> None:
    proxy.add(Fault.DELAY, Phase.BEFORE, url="/x", seconds=1, times=None)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as link:
            link.sendall(b"GET /x HTTP/1.1\r\nHost: cloud\r\n\r\n")
    deadline = time.monotonic() + PATIENCE
    while len(proxy.records) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    proxy.wait_until_left()
    assert all(one.status is not None for one in proxy.records)
