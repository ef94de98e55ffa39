"""A pod's network, from a namespace on this machine into a real VM and back."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.lab.agent import AgentCaller
from tests.lab.service import ServiceProcess, new_id

# TEST-NET-2 (RFC 5737): nobody's, so this machine has no route of its own there.
WORKER_END, POD, PREFIX = "198.51.100.1", "198.51.100.2", 30
NAMESPACE = "caa-test-vmpod"
LINK = "caa-test-vmpod"  # at most 15 characters
PORT = 8080
METADATA = "169.254.169.254"
# Far more than all buffers between, so that the server is still sending when the service is killed.
DOWNLOAD = 48 << 20
# An emulated VM builds the tunnel's other end beside the rest of its boot.
NETWORK_SECONDS = 120.0
STOP_SECONDS = 90.0


def sh(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def host_state() -> dict[str, str]:
    """What a tunnel may leave behind on the worker."""
    links = sorted(line.split("@")[0] for line in sh("ip", "-br", "link").splitlines())
    return {"links": "\n".join(name.split()[0] for name in links), "rules": sh("iptables", "-t", "raw", "-S")}


@dataclass
class Pod:
    """A pod as a CNI plugin leaves it: a namespace with an interface, an address and a default route."""

    netns: str = f"/run/netns/{NAMESPACE}"

    def state(self) -> str:
        inside = ("ip", "netns", "exec", NAMESPACE)
        return sh("ip", "-n", NAMESPACE, "-br", "link") + sh(*inside, "tc", "qdisc", "show", "dev", "eth0")


@pytest.fixture
def pod() -> Iterator[Pod]:
    sh("ip", "netns", "add", NAMESPACE)
    try:
        sh("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        sh("ip", "addr", "add", f"{WORKER_END}/{PREFIX}", "dev", LINK)
        sh("ip", "link", "set", LINK, "up")
        sh("ip", "-n", NAMESPACE, "addr", "add", f"{POD}/{PREFIX}", "dev", "eth0")
        sh("ip", "-n", NAMESPACE, "link", "set", "eth0", "up")
        sh("ip", "-n", NAMESPACE, "route", "add", "default", "via", WORKER_END)
        yield Pod()
    finally:
        subprocess.run(["ip", "link", "del", LINK], check=False, capture_output=True)
        sh("ip", "netns", "del", NAMESPACE)


@contextlib.contextmanager
def shim(path: str) -> Iterator[None]:
    """A shim: what it asks for first is answered when the pod's network is there; then it stays connected.

    Without it the service would take the pod for a dead one, and end its VM a minute later.
    """

    async def run() -> AgentCaller:
        caller = await AgentCaller.connect(path)
        await (await caller.run_container("web")).finish()
        return caller

    with asyncio.Runner() as runner:
        caller = runner.run(run())
        try:
            yield
        finally:
            runner.run(caller.close())


def stop(service: ServiceProcess, sandbox_id: str) -> None:
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, STOP_SECONDS)


def wait_for_server() -> None:
    deadline = time.monotonic() + NETWORK_SECONDS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{POD}:{PORT}/8", timeout=5) as answer:
            assert answer.read() == b"00000000"
            return
        assert time.monotonic() < deadline, f"nobody serves at {POD}:{PORT}"
        time.sleep(0.2)


def test_a_download_from_the_vm_at_the_pods_address_survives_a_killed_service(
    service: ServiceProcess, pod: Pod
) -> None:
    before, pod_before = host_state(), pod.state()
    sandbox_id = new_id()
    created = service.create(sandbox_id, "web", netns=pod.netns)
    service.start_sandbox(sandbox_id)
    with shim(created["agent_socket_path"]):
        wait_for_server()
        connection = HTTPConnection(POD, PORT, timeout=60)
        connection.request("GET", f"/{DOWNLOAD}")
        answer = connection.getresponse()
        received = answer.read(DOWNLOAD // 8)
        service.kill()
        received += answer.read(DOWNLOAD // 8)
        service.start()
        service.wait_ready()
        received += answer.read()
        connection.close()
        assert len(received) == DOWNLOAD
        assert received == b"".join(b"%08x" % number for number in range(DOWNLOAD // 8))
        assert service.sandbox(sandbox_id)["state"] == "running"
        stop(service, sandbox_id)
    assert host_state() == before
    assert pod.state() == pod_before


def test_a_tunnel_that_was_damaged_meanwhile_is_mended_by_the_next_service(service: ServiceProcess, pod: Pod) -> None:
    sandbox_id = new_id()
    created = service.create(sandbox_id, "web", netns=pod.netns)
    service.start_sandbox(sandbox_id)
    with shim(created["agent_socket_path"]):
        wait_for_server()
        service.kill()
        sh("ip", "-n", NAMESPACE, "link", "del", "vxlan1")
        service.start()
        service.wait_ready()
        wait_for_server()
        stop(service, sandbox_id)


@contextlib.contextmanager
def workers_metadata_service() -> Iterator[list[tuple[str, str]]]:
    """A real server at the address on the worker itself; (address, path) of who asked it what."""
    heard: list[tuple[str, str]] = []

    class Worker(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.client_address[0], self.path))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"i-worker")

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    # It goes with the pod's interface.
    sh("ip", "addr", "add", f"{METADATA}/32", "dev", LINK)
    with ThreadingHTTPServer((METADATA, 80), Worker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield heard
        finally:
            server.shutdown()
    sh("ip", "addr", "del", f"{METADATA}/32", "dev", LINK)


def ask_from_vm(path: str) -> tuple[int, str]:
    """What the workload in the VM is answered at the metadata address; 504 if nobody does, and after 10 s at most."""
    connection = HTTPConnection(POD, PORT, timeout=60)
    try:
        connection.request("GET", f"/metadata{path}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_workload_in_the_vm_sees_its_vm_at_the_metadata_address_and_never_the_worker(
    service: ServiceProcess, pod: Pod
) -> None:
    with workers_metadata_service() as heard:
        curl = ("ip", "netns", "exec", NAMESPACE, "curl", "-s", "-m", "30", f"http://{METADATA}/trap")
        assert sh(*curl) == "i-worker"
        assert heard == [(POD, "/trap")]
        sandbox_id = new_id()
        created = service.create(sandbox_id, "web", netns=pod.netns)
        instance = service.start_sandbox(sandbox_id)["instance"]
        with shim(created["agent_socket_path"]):
            wait_for_server()
            assert ask_from_vm("/latest/meta-data/instance-id") == (200, instance["id"])
            assert ask_from_vm("/latest/meta-data/local-ipv4") == (200, instance["address"])
            assert ask_from_vm("/latest/user-data")[0] == 404
            with service.rest() as client:
                seen = client.get(f"/v1/sandboxes/{sandbox_id}/metadata").json()
            assert seen["served"]
            assert seen["answers"]["/latest/meta-data/instance-id"] == instance["id"]
            service.kill()
            assert ask_from_vm("/latest/meta-data/instance-id")[0] == 504
            with another_metadata_device():
                service.start()
                service.wait_ready()
                wait_for_log(service, f"the pod of sandbox {sandbox_id} gets no instance metadata")
            wait_for_answer("/latest/meta-data/instance-id", instance["id"])
            assert heard == [(POD, "/trap")]
            stop(service, sandbox_id)


@contextlib.contextmanager
def another_metadata_device() -> Iterator[None]:
    """What a killed service held is with the kernel for longer than the next one waits for it at a time."""
    deadline = time.monotonic() + NETWORK_SECONDS
    add = ("ip", "-n", NAMESPACE, "link", "add", "held", "link", "vxlan1", "type", "macvlan", "mode", "passthru")
    while subprocess.run(add, capture_output=True).returncode:  # until it gave back its own
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield
    finally:
        sh("ip", "-n", NAMESPACE, "link", "del", "held")


def wait_for_log(service: ServiceProcess, text: str) -> None:
    deadline = time.monotonic() + NETWORK_SECONDS
    while text not in service.log_file.read_text():
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.1)


def wait_for_answer(path: str, expected: str) -> None:
    deadline = time.monotonic() + NETWORK_SECONDS
    while (answer := ask_from_vm(path)) != (200, expected):
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)


def run_in_vm(program: str) -> str:
    """What a Python program prints in the pod VM, with the packages that it loads here."""
    loaded = (
        f"{program.partition('#')[0]}\nimport sys, pathlib\n"
        "site = next(path for path in sys.path if path.endswith('site-packages'))\n"
        "files = [getattr(module, '__file__', None) or '' for module in list(sys.modules.values())]\n"
        "print(site, *{file[len(site) + 1 :].split('/')[0] for file in files if file.startswith(site)})\n"
    )
    site, *tops = sh(sys.executable, "-c", loaded).split()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for top in tops:
            tar.add(Path(site) / top, top, filter=without_models)
        main = tarfile.TarInfo("main.py")
        main.size = len(program.encode())
        tar.addfile(main, io.BytesIO(program.encode()))
    connection = HTTPConnection(POD, PORT, timeout=300)
    try:
        connection.request("POST", "/run", packed.getvalue())
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text.strip()
    finally:
        connection.close()


def without_models(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Of azure and botocore there are many megabytes for services that nobody asks here."""
    unused = re.match(r"azure/(mgmt|storage)|botocore/data/[^/]+/|.*__pycache__", entry.name)
    return None if unused else entry


def test_clients_of_aws_and_azure_in_the_vm_see_its_identity(service: ServiceProcess, pod: Pod) -> None:
    sandbox_id = new_id()
    created = service.create(sandbox_id, "web", netns=pod.netns)
    instance = service.start_sandbox(sandbox_id)["instance"]
    with shim(created["agent_socket_path"]):
        clients_see(service, instance["id"])
        stop(service, sandbox_id)


def clients_see(service: ServiceProcess, instance_id: str) -> None:
    wait_for_server()
    told = run_in_vm(
        "from botocore.utils import IMDSFetcher, InstanceMetadataRegionFetcher\n"
        "# asked there only\n"
        "fetcher = IMDSFetcher(timeout=20)\n"
        "token = fetcher._fetch_metadata_token()\n"
        "print(fetcher._get_request('latest/meta-data/instance-id', None, token).text)\n"
        "print(InstanceMetadataRegionFetcher(timeout=20).retrieve_region())\n"
    )
    assert told.split()[0] == instance_id
    service.stop()
    service.environ["CAA_METADATA_DIALECT"] = "azure"
    service.start()
    service.wait_ready()
    deadline = time.monotonic() + NETWORK_SECONDS
    while ask_from_vm("/metadata/instance")[0] == 504:  # served again a moment after the service is ready
        assert time.monotonic() < deadline
    try:
        told = run_in_vm(
            "from azure.identity import CredentialUnavailableError\n"
            "from azure.identity._credentials.imds import ImdsCredential\n"
            "# asked there only\n"
            "credential = ImdsCredential(_enable_imds_probe=True)\n"
            "try: credential.get_token('https://management.azure.com/.default')\n"
            "except CredentialUnavailableError as error: print(credential._endpoint_available, error)\n"
        )
        assert told.startswith("True ")
        assert "Identity not found" in told
    finally:
        service.stop()
        del service.environ["CAA_METADATA_DIALECT"]
        service.start()
        service.wait_ready()


def test_in_mode_vm_the_workload_reads_the_clouds_own_service_through_its_vm_and_no_user_data(
    service: ServiceProcess, pod: Pod
) -> None:
    service.stop()
    service.environ["CAA_METADATA_MODE"] = "vm"
    service.start()
    service.wait_ready()
    try:
        # The server stands for the cloud's here: the VM, whose network is this machine's, reaches it as well.
        with workers_metadata_service() as heard:
            sandbox_id = new_id()
            created = service.create(sandbox_id, "web", netns=pod.netns)
            instance = service.start_sandbox(sandbox_id)["instance"]
            with shim(created["agent_socket_path"]):
                wait_for_server()
                wait_for_answer("/latest/meta-data/instance-id", "i-worker")
                for path in ("/latest/user-data", "/latest//user-data", "/latest/meta-data/iam/info"):
                    assert ask_from_vm(path)[0] in (400, 404)
                assert {address for address, _ in heard} == {instance["address"]}
                assert {path for _, path in heard} == {"/latest/api/token", "/latest/meta-data/instance-id"}
                stop(service, sandbox_id)
    finally:
        service.stop()
        del service.environ["CAA_METADATA_MODE"]
        service.start()
        service.wait_ready()


def test_two_pods_have_tunnels_of_their_own_and_the_workers_namespace_is_refused(
    service: ServiceProcess, pod: Pod
) -> None:
    ids = [new_id(), new_id()]
    for sandbox_id in ids:
        service.create(sandbox_id, f"pod-{sandbox_id[:6]}", netns=pod.netns)
    foreign = "caa-test-vni"
    with pytest.raises(AssertionError, match="is the worker's own"):
        service.create(new_id(), "host", netns=f"/proc/{os.getpid()}/ns/net")
    # Somebody else's device has the next id: it is stepped over.
    sh("ip", "link", "add", foreign, "type", "vxlan", "id", "555002", "dstport", "4789", "remote", "192.0.2.9")
    try:
        third = new_id()
        service.create(third, "third", netns=pod.netns)
    finally:
        sh("ip", "link", "del", foreign)
    assert host_state()["links"].count("ppvni") == 0
    for sandbox_id in (*ids, third):
        stop(service, sandbox_id)
