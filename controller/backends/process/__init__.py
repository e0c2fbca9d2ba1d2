"""Attempts as processes of this host, isolated from nothing. Imports nothing: every supervisor starts through it."""
