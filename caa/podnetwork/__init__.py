"""The tunnel that carries a pod's network into its pod VM.

The pod's network namespace on the worker keeps what the cluster's CNI plugin made, but its traffic goes another way: tc
redirects every frame of its interface into a VXLAN device and back. The other end of that device is the pod's interface
in the namespace `podns` of the pod VM, with the pod's address and MAC.

On the worker, `worker` reads what a pod's network is like, and `tunnel` builds, mends and removes that end; they use
pyroute2. `podvm` builds the other end. It runs inside the pod VM and stands, with all that it imports, on the standard
library alone; `config` is the object that goes from the one side to the other.
"""
