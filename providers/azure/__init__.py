"""Pod VMs as Azure virtual machines."""
