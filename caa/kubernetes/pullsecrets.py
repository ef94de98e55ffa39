"""The image pull secrets of a sandbox's Pod: those that it names, and those of its service account. No others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from caa.kubernetes.answers import AwayError, RefusedError
from caa.kubernetes.api import KubernetesApi
from caa.kubernetes.registryauths import PullSecret, registry_auths
from caa.kubernetes.whichpod import is_that_pod
from caa.sandbox import Sandbox

log = logging.getLogger(__name__)

# A few reads of some milliseconds. Without an answer the pod starts without: its images may be public.
SECONDS = 2.0


class KubernetesPullSecrets:
    """See `caa.kubernetes.port.PullSecrets`."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    async def of_pod(self, sandbox: Sandbox) -> tuple[Mapping[str, str], list[str]]:
        """Registry -> base64 of "user:password", and a sentence for each Secret that is left out."""
        try:
            async with asyncio.timeout(SECONDS):
                secrets, missing = await self._read(sandbox)
        except (AwayError, RefusedError, TimeoutError) as error:
            return {}, [f"the image pull secrets could not be read: {str(error) or 'no answer in time'}"]
        except Exception as error:  # a defect here must not keep a pod from starting
            # Without the traceback's values: a Secret may be among them.
            log.error("the image pull secrets of sandbox %s could not be read: %s", sandbox.id, type(error).__name__)
            return {}, [f"the image pull secrets could not be read: {type(error).__name__}"]
        auths, useless = registry_auths(secrets)
        return auths, [*missing, *useless]

    async def _read(self, sandbox: Sandbox) -> tuple[list[PullSecret], list[str]]:
        namespace = sandbox.pod_namespace
        pod = await self._api.pod(namespace, sandbox.pod_name)
        if pod is None or not is_that_pod(pod, sandbox):
            return [], ["the image pull secrets could not be read: the Pod is gone"]
        account = await self._api.pull_secrets_of_account(namespace, pod["account"])
        secrets, missing = [], []
        for name in dict.fromkeys([*account, *pod["pull_secrets"]]):
            secret = await self._api.pull_secret(namespace, name)
            if secret is None:
                missing.append(f"Secret {name}, which is to be used to pull images, is not there")
            else:
                secrets.append(secret)
        return secrets, missing
