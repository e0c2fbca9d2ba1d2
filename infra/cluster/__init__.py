"""A cluster: its API server, and the names and rights of a stack on it."""
