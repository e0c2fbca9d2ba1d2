"""Waits until what was created is ready."""
