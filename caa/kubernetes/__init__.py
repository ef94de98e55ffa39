"""What the service tells Kubernetes of its sandboxes. Optional: only `port` and `keys` are loaded without it."""
