"""IBM Cloud VPC: pod VMs as virtual server instances. `registry.py` builds `provider.IbmCloudProvider`."""
