"""Against a stand-in of the Kubernetes API server."""
