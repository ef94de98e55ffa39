"""ttrpc service `podvminfo.PodVMInfo`, on the same socket as the hypervisor: which cloud VM is this pod?

Asked by node components such as the CSI wrappers of the incumbent, so its messages and texts are kept.
"""

from __future__ import annotations

from caa.api.hypervisor import Lifecycle, status_error
from caa.errors import CallError, NotFoundError
from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.protobuf import Message, field
from caa.ttrpc.server import Call, Handler

SERVICE = "podvminfo.PodVMInfo"


class GetInfoRequest(Message):
    """With `wait` the answer comes when the pod has a VM, or when the caller's deadline is over."""

    pod_name: str = field(1)
    pod_namespace: str = field(2)
    wait: bool = field(3)


class GetInfoResponse(Message):
    """The cloud's own id of the VM."""

    vm_id: str = field(1)


def podvminfo_service(lifecycle: Lifecycle) -> dict[str, dict[str, Handler]]:
    """The service for `caa.ttrpc.server.Server`."""

    async def get_info(payload: bytes, _: Call) -> bytes:
        request = GetInfoRequest.decode(payload)
        try:
            vm_id = await lifecycle.vm_id(request.pod_name, request.pod_namespace, wait=request.wait)
        except NotFoundError as error:
            # Clients may compare this text with the incumbent's.
            text = f"VM ID for {request.pod_namespace}:{request.pod_name} was not found"
            raise StatusError(Code.NOT_FOUND, text) from error
        except CallError as error:
            raise status_error(error) from error
        return GetInfoResponse(vm_id=vm_id).encode()

    return {SERVICE: {"GetInfo": get_info}}
