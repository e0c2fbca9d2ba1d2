"""Attempts as processes of this host, isolated from nothing."""
