"""`demo`: every promise shown on a Postgres and a controller of its own. It needs packages that nothing else needs."""
