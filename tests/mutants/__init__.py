"""Mutation check: every guard of the protocol has a test that fails without it."""
