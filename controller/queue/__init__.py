"""The queue in Postgres: the only part that touches the database."""
