"""The key that switches Kubernetes on."""

from __future__ import annotations

from pydantic import Field

from providers.keys import Flag, Keys


class KubernetesKeys(Keys):
    """What the service tells Kubernetes."""

    kubernetes: Flag = Field(
        False,
        alias="CAA_KUBERNETES",
        description="Whether pods get events of what becomes of their VMs, each VM a PeerPod object, and the node "
        "(NODE_NAME) the resource kata.peerpods.io/vm, as many as PEERPODS_LIMIT_PER_NODE. The API server is found by "
        "the service account, KUBECONFIG or ~/.kube/config; needs the extra kubernetes.",
    )
