"""Attempts as Jobs of a Kubernetes namespace."""
