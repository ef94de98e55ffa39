"""Launches one request, to be killed meanwhile. Arguments: keys as JSON, name, token, cluster. First says `go`."""

import json
import os
import sys

from providers.base import LaunchRequest, Offering, Owner
from providers.libvirt.provider import LibvirtProvider
from providers.libvirt.settings import LibvirtKeys


def request(
    name: str, token: str, *, cluster: str = "", node: str = "node-1", user_data: bytes = b"#cloud-config\n"
) -> LaunchRequest:
    """The request of all libvirt tests. The cluster is one of this test run, so that runs do not see each other."""
    return LaunchRequest(
        name=name,
        token=token,
        owner=Owner(cluster or f"caa-test-{os.getpid()}", node, f"sandbox-{token}", "default", "web", 1),
        offering=Offering("libvirt", "", vcpus=1, memory_mib=256, flexible=True),
        user_data=user_data,
    )


if __name__ == "__main__":
    environ, vm_name, vm_token, run = sys.argv[1:]
    provider = LibvirtProvider(LibvirtKeys.model_validate(json.loads(environ)))
    provider.offerings()  # connect first: the moments of interest come after
    print("go", flush=True)
    provider.launch(request(vm_name, vm_token, cluster=run))
    print("done", flush=True)
