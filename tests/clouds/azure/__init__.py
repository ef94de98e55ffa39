"""The part of Azure that pod VMs need."""
