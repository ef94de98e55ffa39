"""The Azure keys that publishing an image needs: the provider's, without what only pod VMs have to have."""

from __future__ import annotations

from pydantic import Field

from providers.azure.settings import AzureKeys


class AzureImageKeys(AzureKeys):
    """What is read to publish an image on Azure. An image needs no network."""

    subnet_id: str = Field("", alias="AZURE_SUBNET_ID", description="Subnet of the pod VMs.")
    # Here as a key, since who builds an image may give keys that are not in the process's environment.
    authority_host: str = Field("", alias="AZURE_AUTHORITY_HOST", description="Where access tokens are asked for.")
