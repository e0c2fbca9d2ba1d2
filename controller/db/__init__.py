"""The queue in Postgres, and all that touches the database."""
