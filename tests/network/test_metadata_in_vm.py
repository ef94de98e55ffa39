"""Mode `vm`: the pod asks the cloud's own service through its VM, and gets no user data."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from caa.guest.metadata import Config, Relay
from tests.network.metadataworld import World, curl, world
from tests.network.topology import Pod, within

ADDRESS = "169.254.169.254"
VALUES = {
    "/latest/meta-data/instance-id": "i-of-the-cloud",
    "/latest/user-data": "SECRET",
    "/latest/dynamic/instance-identity/pkcs7": "signed",
}


class Cloud(BaseHTTPRequestHandler):
    """The cloud's own service for VMs."""

    def do_PUT(self) -> None:
        self.answer(200, "session")

    def do_GET(self) -> None:
        known = self.headers.get("X-aws-ec2-metadata-token") == "session"
        self.answer(200 if known and self.path in VALUES else 404, VALUES.get(self.path, ""))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("metadata")) as found:
        pod = found.pod(2)
        cloud = found.topology.namespace("cloud")
        found.topology.ip(pod.vm, f"link add imds0 type veth peer name eth0 netns {cloud}", "link set imds0 up")
        found.topology.ip(pod.vm, "addr add 192.0.2.1/24 dev imds0", f"route add {ADDRESS}/32 dev imds0")
        found.topology.ip(cloud, "addr add 192.0.2.2/24 dev eth0", f"addr add {ADDRESS}/32 dev lo", "link set eth0 up")
        server = within(cloud, lambda: ThreadingHTTPServer((ADDRESS, 80), Cloud))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found.configure(CAA_METADATA_MODE="vm")
        yield found
        server.shutdown()
        server.server_close()
        assert found.trap.heard == []
        assert found.trap.packets() == 0


def read(pod: Pod, path: str, address: str = ADDRESS) -> tuple[int, str]:
    return curl(pod, f"http://{address}{path}", "-H", "X-aws-ec2-metadata-token: session")


def test_the_pod_sees_what_the_cloud_says_of_the_vm_and_no_user_data(made: World) -> None:
    pod = made.pods[2]
    # A guest that passes nothing on: the worker says so.
    assert read(pod, "/latest/meta-data/instance-id")[0] == 403
    relay = Relay(Config(), pod.podns)
    within(pod.vm, relay.start)
    url = f"http://{ADDRESS}/latest/api/token"
    assert curl(pod, "-X", "PUT", url, "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60") == (200, "session")
    for address in (ADDRESS, "[fd00:ec2::254]"):
        assert read(pod, "/latest/meta-data/instance-id", address) == (200, "i-of-the-cloud")
        for path in ("/latest/user-data", "/latest/user-data/", "//latest/user-data", "/latest/%75ser-data"):
            status, body = curl(
                pod, "--path-as-is", f"http://{address}{path}", "-H", "X-aws-ec2-metadata-token: session"
            )
            assert status >= 400
            assert "SECRET" not in body
        assert read(pod, "/latest/dynamic/instance-identity/pkcs7", address)[0] == 404
    # The tunnel is looked after meanwhile, and the pod's own traffic is not touched.
    made.setup(2)
    assert read(pod, "/latest/meta-data/instance-id") == (200, "i-of-the-cloud")
