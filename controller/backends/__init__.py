"""What runs attempts: one interface, one module an engine. Imports nothing: a process's supervisor starts with it."""
