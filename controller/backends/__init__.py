"""What runs attempts: one interface, one module an engine."""
