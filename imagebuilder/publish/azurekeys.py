"""The Azure keys that publishing an image needs, with the incumbent's names."""

from __future__ import annotations

from pydantic import Field, SecretStr

from providers.keys import Flag, Keys


class AzureImageKeys(Keys):
    """What is read to publish an image on Azure."""

    subscription_id: str = Field("", alias="AZURE_SUBSCRIPTION_ID", description="The subscription.")
    tenant_id: str = Field("", alias="AZURE_TENANT_ID", description="The tenant of the credentials.")
    client_id: str = Field("", alias="AZURE_CLIENT_ID", description="The application of the credentials.")
    client_secret: SecretStr = Field(SecretStr(""), alias="AZURE_CLIENT_SECRET", description="Its secret.")
    authority_host: str = Field("", alias="AZURE_AUTHORITY_HOST", description="Where access tokens are asked for.")
    resource_manager: str = Field(
        "https://management.azure.com",
        alias="AZURE_RESOURCE_MANAGER",
        pattern=r"^https://",
        description="Where the resource manager's API is.",
    )
    region: str = Field("", alias="AZURE_REGION", description="Region of the pod VMs.")
    resource_group: str = Field("", alias="AZURE_RESOURCE_GROUP", description="Resource group of all that is made.")
    image_id: str = Field("", alias="AZURE_IMAGE_ID", description="Image that pod VMs boot from.")
    disable_cvm: Flag = Field(False, alias="DISABLECVM", description="false makes confidential VMs.")
    gallery_name: str = Field(
        "",
        alias="IMAGE_GALLERY_NAME",
        pattern=r"^[A-Za-z0-9_.]{0,80}$",
        description="Gallery of images that are built; one named after the cluster if not set.",
    )
    definition_name: str = Field(
        "",
        alias="IMAGE_DEFINITION_NAME",
        pattern=r"^[A-Za-z0-9_.-]{0,80}$",
        description="Image definition in it; one for each architecture and security type if not set.",
    )
