"""What a stack on a Kubernetes cluster is made of."""
