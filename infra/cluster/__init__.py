"""A cluster's API server, as the stacks ask it."""
