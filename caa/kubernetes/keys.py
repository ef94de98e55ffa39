"""The keys of what the service has to do with Kubernetes."""

from __future__ import annotations

from pydantic import Field

from providers.keys import Flag, Keys

# What Kubernetes allows; "" is none.
NAMESPACE = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"


class KubernetesKeys(Keys):
    """What the service tells Kubernetes."""

    kubernetes: Flag = Field(
        False,
        alias="CAA_KUBERNETES",
        description="Whether pods get events of what becomes of their VMs, each VM a PeerPod object, and the node "
        "(NODE_NAME) the resource kata.peerpods.io/vm, as many as PEERPODS_LIMIT_PER_NODE. The API server is found by "
        "the service account, KUBECONFIG or ~/.kube/config; needs the extra kubernetes.",
    )
    config_namespace: str = Field(
        "",
        alias="CAA_CONFIG_NAMESPACE",
        pattern=NAMESPACE,
        max_length=63,
        description="The namespace of the ConfigMap peer-pods-cm and the Secret peer-pods-secret. When set they are "
        "watched at the API server, instead of in the directories of CAA_CONFIG_DIR and CAA_SECRET_DIR, which count "
        "until it answers; what is refused is told by an event of the ConfigMap, and the id of an image that was built "
        "here is written into it. Of the environment only; needs CAA_KUBERNETES.",
    )
    pull_secrets: Flag = Field(
        False,
        alias="CAA_PULL_SECRETS",
        description="Whether a pod VM is sent the image pull secrets of its pod and of that pod's service account, as "
        "/run/peerpod/auth.json of the user data, for images that are pulled inside. Needs CAA_KUBERNETES, and the "
        "role caa-node-pull-secrets.",
    )
