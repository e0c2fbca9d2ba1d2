"""The components of the stacks."""
