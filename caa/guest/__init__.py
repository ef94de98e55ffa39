"""What runs inside the pod VM: user data, the agent protocol forwarder, and a stand-in agent for test images.

Small import set on purpose: the standard library, PyYAML for the user data, and `caa.ttrpc`. A pod VM starts this on
every pod, often on one slow CPU.
"""
