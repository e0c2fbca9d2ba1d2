"""The components of a stack on a Kubernetes cluster."""
