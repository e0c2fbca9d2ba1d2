"""Waits until what was made is ready."""
