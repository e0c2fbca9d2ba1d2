"""What a controller tells over HTTP: whether it lives, whether it can work, and its metrics."""
