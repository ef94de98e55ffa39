"""Amazon EC2: pod VMs as EC2 instances. `registry.py` builds `provider.AwsProvider`."""
