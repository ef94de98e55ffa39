"""The user data of one launch attempt: what the pod VM is told of its pod, its keys and its network."""

from __future__ import annotations

from collections.abc import Mapping

from caa.guestconfig import INITDATA_ANNOTATION, apf_json, auth_json, guest_files, initdata
from caa.metadata.keys import guest_metadata
from caa.node import Node
from caa.sandbox import Sandbox
from caa.userdatasize import Fitted, fit


def pod_user_data(
    node: Node,
    sandbox: Sandbox,
    name: str,
    pod_network: Mapping[str, object] | None = None,
    auths: Mapping[str, str] | None = None,
) -> Fitted:
    """The user data of the VM `name`, with a new server key. Raises InvalidInputError for what cannot be sent.

    `auths` is of the registries, see `caa.guestconfig.auth_json`.
    """
    keys = node.tls.keys
    apf = apf_json(
        pod_namespace=sandbox.pod_namespace,
        pod_name=sandbox.pod_name,
        identity=keys.issue(name) if keys else None,
        client_ca=keys.client_certificate if keys else "",
        tls=node.tls.profile,
        pod_network=pod_network,
        metadata=guest_metadata(node.current.settings),
    )
    files = guest_files(
        apf=apf,
        auth=auth_json(auths or {}),
        initdata=initdata(sandbox.annotations.get(INITDATA_ANNOTATION, ""), node.initdata),
        scratch_space=node.scratch_space,
    )
    return fit(files, node.cloud.user_data_limit, node.cloud.name)
