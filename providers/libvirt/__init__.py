"""libvirt: pod VMs on a QEMU host, local or reached over ssh. `registry.py` builds `provider.LibvirtProvider`."""
