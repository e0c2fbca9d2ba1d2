"""Reconciles rows with runs: claims rows, takes each sandbox from action to action, and resyncs table and engine."""
