"""What runs attempts: one interface, one package an engine. Imports nothing: a process's supervisor starts with it."""
