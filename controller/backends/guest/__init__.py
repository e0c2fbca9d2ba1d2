"""What runs in a sandbox beside its command, and what it writes down. Imports nothing: supervisors start with it."""
