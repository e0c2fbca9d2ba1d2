"""The components of a stack on a Docker engine."""
