"""An emulated IBM Cloud: VPC, IAM, tagging, the worker's metadata and object storage, in a process of its own."""
